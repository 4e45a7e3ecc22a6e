"""What was done to a photograph is undone, exactly where it was read exactly."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bloodcell_lib import augment, camera, decode, microscope, synthetic
from bloodcell_lib.microscope import LOOK, READ
from bloodcell_lib.stain import scale_stains

NOTHING = np.zeros((1, len(READ)))


@pytest.fixture(scope="module")
def cell() -> Image.Image:
    return synthetic.draw("neutrophil", np.random.default_rng(3))


def reading(blur: float = 0, **factors: float) -> np.ndarray:
    return np.array([[*(math.log(factors.get(name, 1.0)) for name in READ[:6]), blur]])


def as_tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


def as_picture(x: torch.Tensor) -> Image.Image:
    return Image.fromarray((x[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference, in levels of 255."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("crop", [240, None, 200])
def test_of_ours_nothing_is_changed(cell, tmp_path, crop):
    cell.save(tmp_path / "cell.png")
    expected = decode.to_pixels(tmp_path / "cell.png", 96, crop or 360)
    found = microscope.undone([cell], NOTHING, 96, crop)[0]
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert microscope.look(cell).shape == (LOOK, LOOK, 3)


def test_light_and_dyes_are_taken_back(cell):
    factors = {"red": 0.96, "green": 0.92, "blue": 0.87, "haematoxylin": 0.7, "eosin": 1.3}
    light = torch.tensor([factors[name] for name in ("red", "green", "blue")])[None, :, None, None]
    dyed = scale_stains(as_tensor(cell), torch.tensor([0.7]), torch.tensor([1.3]))
    other = as_picture(dyed * light)
    ours = microscope.undone([cell], NOTHING, 96)
    before, after = (
        apart(np.asarray(microscope.undone([other], NOTHING, 96)), ours),
        apart(microscope.undone([other], reading(**factors), 96), ours),
    )
    assert before > 8 and after < 1.5, (before, after)


@pytest.mark.parametrize("zoom", [0.5, 1.4, 2.0])
def test_another_magnification_is_taken_back(cell, zoom):
    square = as_tensor(cell)[..., :360, :360]
    other = as_picture(camera.taken(square, torch.tensor([zoom]), torch.ones(1), 360))
    ours = microscope.undone([as_picture(square)], NOTHING, 96, 160)
    assert apart(microscope.undone([other], NOTHING, 96, 160), ours) > 6
    assert apart(microscope.undone([other], reading(zoom=zoom), 96, 160), ours) < 3


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_a_blur_is_taken_back_as_far_as_it_can_be(cell, sigma):
    sharp = as_tensor(cell)[..., :360, :360]
    blurred = augment.blur(sharp, torch.tensor([sigma / 100 * 360]))
    ours, other = (microscope.undone([as_picture(x)], NOTHING, 96, 240) for x in (sharp, blurred))
    found = microscope.undone([as_picture(blurred)], reading(blur=sigma), 96, 240)
    assert apart(found, ours) < 0.75 * apart(other, ours)
    assert found.mean() == pytest.approx(ours.mean(), abs=1)
    assert np.array_equal(microscope.sharpened(other, np.array([0.0])), other)
    both = microscope.sharpened(np.concatenate([other, other]), np.array([0.0, 1.0]))
    assert np.array_equal(both[:1], other) and not np.array_equal(both[1:], other)


def test_each_picture_has_its_own_reading_and_size(cell):
    wide = cell.resize((500, 400))
    readings = np.concatenate([reading(zoom=2, red=0.9), NOTHING, reading(eosin=1.2)])
    together = microscope.undone([cell, wide, wide], readings, 48, 240)
    alone = [microscope.undone([one], readings[i : i + 1], 48, 240)[0] for i, one in enumerate((cell, wide, wide))]
    assert np.array_equal(together, np.stack(alone))
    assert apart(together[1], microscope.undone([wide.resize((450, 360))], NOTHING, 48, 240)[0]) < 2


def test_beyond_the_edge_is_the_edge():
    grey = Image.new("RGB", (120, 90), (10, 200, 90))
    found = microscope.view(grey, 3.0, 32)
    assert found.shape == (32, 32, 3) and (found == np.array([10, 200, 90])).all()
    assert microscope.view(Image.new("RGB", (1, 1), "white"), 0.1, 8).shape == (8, 8, 3)
    disc = np.full((90, 90, 3), 255, np.uint8)
    disc[30:60, 30:60] = 0
    seen = microscope.view(Image.fromarray(disc), 2.0, 60)  # the photograph in the middle half, a third of it dark
    assert (seen[:, :, 0] < 128).sum() == pytest.approx(100, abs=25) and (seen[:16] == 255).all()


def test_a_reading_beyond_all_bounds_is_survived(cell):
    wild = np.array([[80.0, 0, 0, 0, 0, 0, 30], [-80.0, 0, 0, 0, 0, 0, -1]])
    assert microscope.undone([cell, cell], wild, 32, 240).shape == (2, 32, 32, 3)


def test_black_and_white_stay_numbers():
    flat = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    found = microscope.recoloured(flat, np.repeat(reading(red=0.5, haematoxylin=3, eosin=0.2), 2, 0))
    assert found.dtype == np.uint8 and (found[1] == 255).all() and found[0].mean() < 200


def test_it_imports_no_torch():
    code = "import sys, bloodcell_lib.microscope; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
