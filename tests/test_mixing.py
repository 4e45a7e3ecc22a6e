from __future__ import annotations

import pytest
import torch

from bloodcell_lib import mixing

N, SIDE = 64, 32


@pytest.fixture
def batch():
    """Image i is all i; its label is i modulo 8."""
    at = torch.arange(N)
    return at.float()[:, None, None, None].expand(N, 3, SIDE, SIDE), at % 8


def by_hand(shares: torch.Tensor) -> torch.Tensor:
    """The labels that shares of the first of each pair make; neighbours have other labels here."""
    targets = torch.zeros(N, 8)
    for i, share in enumerate(shares.tolist()):
        targets[i, i % 8] += share
        targets[i, (i - 1) % 8] += 1 - share
    return targets


def test_mixup_blends_every_pixel_as_it_blends_the_labels(batch):
    torch.manual_seed(0)
    mixed, targets = mixing.mix(*batch, 8, mixup=0.4, cutmix=0.0)
    assert torch.equal(mixed.amin((1, 2, 3)), mixed.amax((1, 2, 3)))
    own, other = torch.arange(N).float(), torch.arange(N).roll(1).float()
    shares = (mixed[:, 0, 0, 0] - other) / (own - other)
    torch.testing.assert_close(targets, by_hand(shares), atol=1e-4, rtol=0)
    assert shares.min() >= 0 and shares.max() <= 1 + 1e-5 and shares.std() > 0.2


def test_cutmix_pastes_a_box_and_counts_its_pixels(batch):
    torch.manual_seed(1)
    mixed, targets = mixing.mix(*batch, 8, mixup=0.0, cutmix=1.0)
    own = torch.arange(N).float()[:, None, None] == mixed[:, 0]  # (N, SIDE, SIDE)
    other = torch.arange(N).roll(1).float()[:, None, None] == mixed[:, 0]
    assert (own ^ other).all()  # every pixel is one image's or the other's
    rows, columns = other.any(2), other.any(1)
    assert torch.equal(other, rows[:, :, None] & columns[:, None, :])  # a box
    torch.testing.assert_close(targets, by_hand(own.float().mean((1, 2))), atol=1e-5, rtol=0)
    assert (targets > 0).sum(1).max() == 2


def test_with_both_about_half_of_the_images_are_mixed_each_way(batch):
    torch.manual_seed(2)
    mixed, targets = mixing.mix(*batch, 8, mixup=1.0, cutmix=1.0)
    blended = (mixed.amin((1, 2, 3)) == mixed.amax((1, 2, 3))) & (targets.amax(1) < 1)
    assert N / 4 < blended.sum() < 3 * N / 4
    torch.testing.assert_close(targets.sum(1), torch.ones(N))


def test_a_box_covers_what_it_should_where_no_edge_cuts_it():
    torch.manual_seed(3)
    kept = mixing.outside_boxes(torch.full((4000,), 0.75), 64, 48).mean((1, 2, 3))
    assert kept.min() == pytest.approx(0.75, abs=0.02) and kept.max() < 1
    assert torch.equal(mixing.outside_boxes(torch.ones(3), 8, 8), torch.ones(3, 1, 8, 8))
