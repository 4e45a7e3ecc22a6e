"""The checks of heat maps, on networks whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from bloodcell_lib import analysis, gradcam, models, sanity
from bloodcell_lib.models import ModelConfig


class LeftHalf(nn.Module):
    """Says class 0 the surer the darker the left half is, and never looks at the right one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        dark = 1 - x[..., : x.shape[-1] // 2].mean((1, 2, 3))
        return torch.cat([20 * dark[:, None] - 10, torch.zeros(len(x), 7)], 1)


@pytest.fixture
def scene():
    images = torch.zeros(3, 3, 20, 24, dtype=torch.uint8)
    canvas = torch.full_like(images, 255)
    left = torch.zeros(3, 20, 24)
    left[..., :12] = 1
    return images, canvas, left + 1e-3 * torch.rand(3, 20, 24)


@pytest.mark.parametrize("insert", [False, True])
def test_curves_fall_and_rise_with_what_the_network_sees(scene, insert):
    images, canvas, left = scene
    classes = torch.zeros(3, dtype=torch.int64)
    good, bad = (
        sanity.curves(LeftHalf(), images, classes, score, canvas, steps=8, insert=insert) for score in (left, -left)
    )
    whole = torch.softmax(analysis.logits(LeftHalf(), images).double(), 1)[:, 0].numpy()
    empty = torch.softmax(analysis.logits(LeftHalf(), canvas).double(), 1)[:, 0].numpy()
    first, last = (empty, whole) if insert else (whole, empty)
    for curve in (good, bad):
        assert curve.shape == (3, 9) and np.allclose(curve[:, 0], first) and np.allclose(curve[:, -1], last)
    # Half of the pixels decide: after half of the steps the good order has done everything, the bad one nothing.
    assert np.allclose(good[:, 4], last) and np.allclose(bad[:, 4], first)
    assert ((sanity.area(good) > sanity.area(bad)) == insert).all()


def test_the_area_under_a_constant_is_the_constant():
    assert np.allclose(sanity.area(np.full((2, 17), 0.3)), 0.3)
    assert np.allclose(sanity.area(np.linspace(0, 1, 9)[None]), 0.5)


def test_orders_start_where_their_names_say():
    maps = torch.zeros(2, 30, 30)
    maps[:, 3, 4] = 1
    cell = torch.zeros(2, 30, 30, dtype=torch.bool)
    cell[:, 5:15, 18:28] = True
    found = sanity.orders(maps, cell, (4, 4))
    assert divmod(int(found["grad_cam"][0].argmax()), 30) == (3, 4)
    assert divmod(int(found["centre"][1].argmax()), 30) in [(14, 14), (14, 15), (15, 14), (15, 15)]
    first = found["cell"][0].flatten().argsort(descending=True)
    assert cell[0].flatten()[first[:100]].all() and 8 <= first[0] // 30 <= 11 and 21 <= first[0] % 30 <= 24
    assert not torch.equal(found["random"][0], found["random"][1])
    zeros = found["grad_cam"][0].flatten()[200:]  # ties go in no order of place
    assert abs(spearmanr(zeros.numpy(), np.arange(len(zeros)))[0]) < 0.15


def test_canvases_hold_no_structure():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    blurred = sanity.blurred(images)
    assert blurred.dtype == torch.uint8 and blurred.float().std() < 0.2 * images.float().std()
    flat = sanity.emptied(images, torch.tensor([[10.0, 20, 30], [1, 2, 3]]).view(2, 3, 1, 1))
    assert flat.shape == images.shape and flat[1, 2].eq(3).all()


@pytest.mark.parametrize("name", ["efficientnet_lite", "simple_cnn", "resnet18"])
def test_the_cascade_shuffles_one_part_more_each_time(name):
    torch.manual_seed(0)
    network = models.build(ModelConfig(name)).eval()
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    names = list(gradcam.parts(network))
    seen = []
    for part, changed in sanity.cascade(network, images):
        seen.append(part)
        assert not changed.training and torch.isfinite(analysis.logits(changed, images)).all()
        for k, (key, module) in enumerate(gradcam.parts(changed).items()):
            original = gradcam.parts(network)[key]
            for new, old in zip(module.parameters(), original.parameters()):
                if old.std() > 0:  # shuffling equal numbers, as of a fresh batch norm, changes nothing
                    assert torch.equal(new, old) == (k >= len(seen))
        for new, old in zip(gradcam.parts(changed)[part].parameters(), gradcam.parts(network)[part].parameters()):
            if old.numel() < 100_000:
                assert torch.equal(new.flatten().sort()[0], old.flatten().sort()[0])
    assert seen == names
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 6, 6)).round(1), rng.random((4, 6, 6)).round(1)
    expected = [spearmanr(x.ravel(), y.ravel())[0] for x, y in zip(a, b)]
    assert np.allclose(sanity.rank_correlation(a, b), expected)
    assert np.allclose(sanity.rank_correlation(a, a), 1) and np.allclose(sanity.rank_correlation(a, -a), -1)
    assert np.allclose(sanity.rank_correlation(a, np.zeros_like(a)), 0)


def test_a_mean_lies_in_its_interval():
    found = sanity.mean(np.random.default_rng(0).normal(5, 1, 400))
    assert found["low"] < 5 < found["high"] and found["high"] - found["low"] == pytest.approx(4 * 0.05, rel=0.15)
