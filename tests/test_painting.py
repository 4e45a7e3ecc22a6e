"""Painting: what is kept stays to the bit, what is painted holds nothing of what was there."""

import pytest
import torch

from bloodcell_lib import painting


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 30, 34), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    mask = torch.zeros(4, 30, 34, dtype=torch.bool)
    mask[:, 10:20, 12:24] = True
    mask[3] = False
    return mask


def shrunk(mask):
    return ~painting.dilate((~mask)[:, None].float(), 2)[:, 0].bool()


def test_a_blend_keeps_both_sides_and_mixes_the_seam(images, mask):
    other = torch.full_like(images, 7)
    out = painting.blend(images, other, mask)
    assert out.dtype == torch.uint8 and out.shape == images.shape
    inside, outside = shrunk(mask)[:, None].expand_as(images), shrunk(~mask)[:, None].expand_as(images)
    assert torch.equal(out[inside], images[inside]) and (out[outside] == 7).all()
    assert (out[3] == 7).all()


def test_a_median_is_of_the_mask_alone(images, mask):
    flat = torch.full_like(images, 200)
    flat[mask[:, None].expand_as(flat)] = 40
    assert painting.median_colour(flat, mask)[:3].eq(40).all() and painting.median_colour(flat, ~mask).eq(200).all()
    assert painting.median_colour(flat, mask)[3].eq(200).all()  # nothing is masked: of the whole image


def test_shuffled_pixels_come_from_the_mask(images, mask):
    flat = torch.full_like(images, 200)
    flat[mask[:, None].expand_as(flat)] = 40
    out = painting.shuffled(flat, mask, torch.Generator().manual_seed(1))
    assert out[:3].eq(40).all()
    whole = painting.shuffled(images, torch.ones_like(mask), torch.Generator().manual_seed(1))
    pixels = {tuple(p) for p in images[0].flatten(1).T.tolist()}
    assert {tuple(p) for p in whole[0].flatten(1).T.tolist()} <= pixels


def test_an_inpainted_hole_forgets_what_was_in_it(images, mask):
    hidden = images.clone()
    hidden[mask[:, None].expand_as(hidden)] = 255
    # The seam of the blend lies on the hole's edge, one pixel inside and one out.
    inside = shrunk(mask)[:, None].expand_as(images)
    first, second = painting.inpaint(images, mask), painting.inpaint(hidden, mask)
    assert torch.equal(first[inside], second[inside])
    assert torch.equal(first[3], images[3])


def test_a_hole_in_a_slope_is_filled_with_the_slope(mask):
    slope = torch.linspace(20, 220, 34).round().byte().expand(4, 3, 30, 34)
    filled = painting.inpaint(slope, mask)
    assert (filled.float() - slope.float()).abs().max() < 25  # out of 200; its own span over the hole is 67


def test_everything_hidden_is_filled_with_something(images):
    assert painting.inpaint(images, torch.ones(4, 30, 34, dtype=torch.bool)).shape == images.shape


def test_a_moved_mask_leaves_the_cell_and_stays_its_size(mask):
    moved = painting.move(mask, torch.Generator().manual_seed(0))
    assert (moved & mask).sum() < 0.1 * mask.sum() and not moved[3].any()
    assert (moved[:3].sum((1, 2)) > 40).all() and (moved.sum((1, 2)) <= 1.3 * mask.sum((1, 2))).all()
    assert torch.equal(moved, painting.move(mask, torch.Generator().manual_seed(0)))


def test_a_cell_that_fills_the_picture_can_still_be_asked_to_move():
    full = torch.ones(1, 20, 20, dtype=torch.bool)
    assert painting.move(full, torch.Generator().manual_seed(0)).sum() < 400


def test_a_wider_mask_holds_the_mask(mask):
    wide = painting.wider(mask)
    assert (wide | mask).equal(wide) and wide[0].sum() > mask[0].sum() and not wide[3].any()
