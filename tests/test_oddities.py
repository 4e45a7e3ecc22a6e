from __future__ import annotations

import numpy as np
import pytest
import torch

from bloodcell_lib import oddities, synthetic


@pytest.fixture(scope="module")
def cells() -> torch.Tensor:
    """uint8 (6, 3, 60, 60): drawn cells."""
    drawn = [synthetic.draw("monocyte", np.random.default_rng(i)).resize((60, 60)) for i in range(6)]
    return torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).permute(0, 3, 1, 2).contiguous()


def test_each_picture_gives_one_of_each_kind_and_stays_as_it_is(cells):
    before = cells.clone()
    odd = oddities.draw(cells)
    assert list(odd) == ["background", "blank", "noise", "artefacts"] and torch.equal(cells, before)
    for images in odd.values():
        assert images.shape == cells.shape and images.dtype == torch.uint8
        assert len({image.numpy().tobytes() for image in images}) == 6
    again, other = oddities.draw(cells), oddities.draw(cells, seed=1)
    assert all(torch.equal(odd[name], again[name]) for name in odd)
    assert not torch.equal(odd["noise"], other["noise"]) and not torch.equal(odd["artefacts"], other["artefacts"])
    assert torch.equal(odd["background"], other["background"])


def test_background_holds_the_corner_and_nothing_else(cells):
    field = oddities.background(cells)
    corner = cells[..., :12, :12]
    assert torch.equal(field[..., :12, :12], corner)
    assert torch.equal(field[..., 12:24, :12], corner.flip(2)) and torch.equal(field[..., :12, 12:24], corner.flip(3))
    assert torch.equal(field[..., 24:36, 24:36], corner)
    cells = cells.clone()
    cells[..., 12:, :], cells[..., 12:] = 0, 0
    assert torch.equal(oddities.background(cells), field)


@pytest.mark.parametrize("side", [4, 32, 61])
def test_every_size_is_filled(side):
    odd = oddities.draw(torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8))
    assert all(images.shape == (3, 3, side, side) for images in odd.values())


def test_a_blank_field_has_one_colour_noise_every_level(cells):
    odd = oddities.draw(cells)
    for blank, field in zip(odd["blank"], odd["background"]):
        assert (blank.flatten(1).amin(1) == blank.flatten(1).amax(1)).all()
        assert (blank[:, 0, 0] - field.float().mean((1, 2))).abs().max() <= 0.5
    assert len(odd["noise"].unique()) == 256 and odd["noise"].float().mean() == pytest.approx(127.5, abs=2)


def test_artefacts_are_dark_flecks_dark_rims_and_bright_scratches(cells):
    odd = oddities.draw(cells)
    change = (odd["artefacts"].int() - odd["background"].int()).float().mean(1)  # (n, H, W)
    for i, image in enumerate(change):
        covered = (image.abs() > 2).float().mean()
        assert 0 < covered < 0.5, i
        dark, bright = (image < -20).float().mean(), (image > 5).float().mean()
        assert (dark > 0) if i % 3 < 2 else (dark == 0 and bright > 0)
