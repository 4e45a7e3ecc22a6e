from __future__ import annotations

import pytest
import torch

from bloodcell_lib import stain


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


def test_the_basis_is_of_length_one_and_its_third_axis_stands_upright():
    own = stain.basis()
    torch.testing.assert_close(own.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(own[2] @ own[:2].T, torch.zeros(2), atol=1e-6, rtol=0)


def test_densities_are_those_that_a_picture_was_made_of():
    amounts = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.8
    amounts[:, 2] = 0  # two stains and nothing else
    picture = torch.exp(-torch.einsum("sk,bshw->bkhw", stain.basis(), amounts))
    torch.testing.assert_close(stain.densities(picture), amounts, atol=1e-5, rtol=0)


def test_each_stain_is_scaled_for_itself_and_for_each_image(images):
    more = stain.scale_stains(images, torch.tensor([1.0, 1.2, 1.0, 0.9]), torch.tensor([1.0, 1.0, 0.8, 0.9]))
    torch.testing.assert_close(more[0], images[0])
    factors = torch.tensor([[1, 1, 1], [1.2, 1, 1], [1, 0.8, 1], [0.9, 0.9, 1]])[:, :, None, None]
    # What would be brighter than white is cut, so compare where nothing is.
    whole = (more < 1).all(1, keepdim=True)
    expected = stain.densities(images) * factors
    torch.testing.assert_close(stain.densities(more) * whole, expected * whole, atol=1e-4, rtol=0)


def test_white_stays_white_and_black_stays_finite():
    ends = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4)])
    out = stain.scale_stains(ends, torch.tensor([1.5, 1.5]), torch.tensor([0.5, 0.5]))
    assert torch.equal(out[0], ends[0])
    assert out.isfinite().all() and out[1].max() < 0.1
