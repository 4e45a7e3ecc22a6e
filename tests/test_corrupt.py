from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from bloodcell_lib import corrupt, stain, synthetic
from bloodcell_lib.corrupt import CAMERA, CORRUPTIONS, Lot
from bloodcell_lib.errors import BloodcellError


@pytest.fixture(scope="module")
def cells() -> torch.Tensor:
    """uint8 (8, 3, 96, 96): one drawn cell of each type."""
    drawn = [synthetic.draw(name, np.random.default_rng(i)).resize((96, 96)) for i, name in enumerate(synthetic.NAMES)]
    return torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).permute(0, 3, 1, 2).contiguous()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_stronger_whole_and_the_same_again(cells, name):
    seen = [corrupt.corrupt(cells, name, severity) for severity in corrupt.SEVERITIES]
    for images in seen:
        assert images.shape == cells.shape and images.dtype == torch.uint8
    assert torch.equal(seen[2], corrupt.corrupt(cells, name, 3))
    far = [distance(images, cells) for images in seen]
    assert far[0] > 0.3 and far[4] > far[0]
    # A slide that is turned by 90 degrees is no further from itself than one turned by 45; nor is one that is shifted.
    if name not in ("rotation", "translation", "magnification"):
        assert all(a < b for a, b in itertools.pairwise(far)), far


@pytest.mark.parametrize("name", [*CORRUPTIONS])
def test_floats_are_taken_as_they_come(cells, name):
    whole, float_ = corrupt.corrupt(cells, name, 2, seed=5), corrupt.corrupt(cells / 255, name, 2, seed=5)
    assert float_.dtype == torch.float32 and float_.min() >= 0 and float_.max() <= 1
    torch.testing.assert_close(float_ * 255, whole.float(), atol=0.51, rtol=0)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "brightness", "stain", "translation"])
def test_another_seed_gives_other_pictures(cells, name):
    assert not torch.equal(corrupt.corrupt(cells, name, 3, seed=0), corrupt.corrupt(cells, name, 3, seed=1))


def test_more_images_than_a_batch_all_come_back_each_with_draws_of_its_own(monkeypatch):
    monkeypatch.setattr(corrupt, "BATCH", 4)
    grey = torch.full((10, 3, 16, 16), 100, dtype=torch.uint8)
    noisy = corrupt.corrupt(grey, "gaussian_noise", 3)
    assert len(noisy) == 10 and len({image.numpy().tobytes() for image in noisy}) == 10
    bright = corrupt.corrupt(grey, "brightness", 5)
    assert set(bright.flatten().tolist()) == {50, 150}
    assert len(corrupt.corrupt(grey[:0], "jpeg", 1)) == 0


@pytest.mark.parametrize("pixels", [56, 112, 224])
def test_a_cameras_noise_does_not_depend_on_the_size_that_is_seen(pixels):
    """Seen at half the size, four of the camera's pixels make one: half the noise."""
    grey = torch.full((4, 3, pixels, pixels), 0.5)
    for name, sd in (("gaussian_noise", 0.04), ("shot_noise", (0.5 / 60) ** 0.5)):
        noise = corrupt.corrupt(grey, name, 1) - grey
        assert noise.mean().abs() < 0.003
        assert noise.std().item() == pytest.approx(sd * pixels / CAMERA, rel=0.05)


def test_jpeg_is_a_file_of_the_stated_quality(cells):
    """At the camera's own size the picture is the very one that a file of that quality holds."""
    large = torch.nn.functional.interpolate(cells[:1].float(), (CAMERA, CAMERA), mode="bilinear").byte()
    file = io.BytesIO()
    Image.fromarray(large[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=CORRUPTIONS["jpeg"].levels[1])
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]
    assert torch.equal(corrupt.corrupt(large, "jpeg", 2), expected)


def test_stains_change_by_the_stated_factors():
    image = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    out = corrupt.corrupt(image, "stain", 1)
    ratio = (stain.densities(out) / stain.densities(image)).median(3).values.median(2).values
    assert set(ratio[:, :2].mul(100).round().flatten().tolist()) == {85, 115}
    assert len({tuple(row) for row in ratio[:, :2].mul(100).round().tolist()}) == 4


def test_magnification_enlarges_and_shrinks():
    disc = (torch.hypot(*torch.meshgrid(*2 * [torch.arange(64.0) - 31.5], indexing="ij")) < 12).float()
    areas = corrupt.corrupt(disc.expand(16, 3, 64, 64).clone(), "magnification", 4).mean((1, 2, 3)) / disc.mean()
    assert {round(area.item() ** 0.5, 1) for area in areas} == {1.5, 0.7}


def test_draws_are_the_same_for_each_severity():
    grey = torch.full((16, 3, 8, 8), 100, dtype=torch.uint8)
    up = [corrupt.corrupt(grey, "brightness", s).float().mean((1, 2, 3)) > 100 for s in (1, 5)]
    assert torch.equal(*up) and 0 < up[0].sum() < 16


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_black_white_and_single_images_stay_pictures(name):
    ends = torch.stack([torch.zeros(3, 40, 40), torch.ones(3, 40, 40)])
    for images in (ends, ends[:1]):
        out = CORRUPTIONS[name].apply(images, CORRUPTIONS[name].levels[4], Lot(0))
        assert out.shape == images.shape and out.isfinite().all()


def test_what_cannot_be_done_is_told():
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(BloodcellError, match="Unknown corruption 'fog': choose one of blur"):
        corrupt.corrupt(images, "fog", 1)
    for severity in (0, 6):
        with pytest.raises(BloodcellError, match=f"no severity {severity}: give one from 1 to 5"):
            corrupt.corrupt(images, "blur", severity)
    for wrong in (images[0], torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 9)):
        with pytest.raises(BloodcellError, match="give square ones in colour"):
            corrupt.corrupt(wrong, "blur", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_gpu_gives_the_same_pictures(cells, name):
    here, there = corrupt.corrupt(cells, name, 3), corrupt.corrupt(cells.cuda(), name, 3).cpu()
    assert (here.int() - there.int()).abs().max() <= (8 if name == "jpeg" else 1)
