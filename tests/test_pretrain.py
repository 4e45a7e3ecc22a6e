"""Learning without labels: the loss by hand, what is learnt, and its place before a training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_trainer import BARE, QUICK, equal, pictures, trainer, without_times
from torch.nn import functional as F

from bloodcell_lib import models, pretrain
from bloodcell_lib.augment import Augment
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import ModelConfig

FIRST = replace(QUICK, pretrain=2)


def test_the_loss_is_the_papers():
    z = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for i in range(10):
        alike = {k: torch.exp(F.cosine_similarity(z[i], z[k], 0) / 0.5) for k in range(10) if k != i}
        total -= torch.log(alike[(i + 5) % 10] / sum(alike.values()))
    torch.testing.assert_close(pretrain.nt_xent(z, 0.5), total / 10)


def test_views_of_one_image_become_alike_and_the_last_layer_stays():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    colours = 255 * torch.rand(96, 3, 2, 2, generator=generator)
    images = F.interpolate(colours, (32, 32), mode="bilinear").to(torch.uint8)
    model = models.build(BARE)
    head = {name: value.clone() for name, value in model.net.head.state_dict().items()}
    losses = list(pretrain.contrast(model, images, 25, generator))
    assert len(losses) == 25 and losses[-1] < 0.7 * losses[0]
    assert equal(head, model.net.head.state_dict())
    assert all(parameter.grad is None for parameter in model.parameters())
    views = Augment(pretrain.VIEWS)(images.repeat(2, 1, 1, 1), generator)
    with torch.no_grad():
        z = F.normalize(model.eval().net.features(model.seen(views)).mean((2, 3)), dim=1)
    z = z - z.mean(0)
    alike = F.cosine_similarity(z[:96], z[96:]).mean()
    assert alike > F.cosine_similarity(z[:96], z[96:].roll(1, 0)).mean() + 0.2


def test_it_comes_before_a_training_once(tmp_path, monkeypatch):
    plain, first = (trainer(config, BARE).fit(pictures(), pictures(16, seed=1)) for config in (QUICK, FIRST))
    assert len(first.history) == len(plain.history) == 2 and not equal(first.weights, plain.weights)
    checkpoint = tmp_path / "run.pt"
    cut = trainer(FIRST, BARE, checkpoint=checkpoint).epochs(pictures(), pictures(16, seed=1))
    next(cut)
    cut.close()
    monkeypatch.setattr(pretrain, "contrast", None)  # what is learnt is in the checkpoint
    again = trainer(FIRST, BARE, checkpoint=checkpoint).fit(pictures(), pictures(16, seed=1))
    assert equal(again.weights, first.weights)
    assert without_times(again.history) == without_times(first.history)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_networks_without_one_last_layer_are_refused(name):
    with pytest.raises(BloodcellError, match="cannot be pre-trained: choose slim_resnet"):
        trainer(FIRST, ModelConfig(name)).fit(pictures())


def test_one_image_is_too_few():
    model = models.build(BARE)
    with pytest.raises(BloodcellError, match="1 images are too few"):
        next(pretrain.contrast(model, pictures(1).images, 1, torch.Generator()))
