"""Haematoxylin and eosin in a picture: how much of each stain a pixel holds, and pictures with more or less of it.

Colour deconvolution after Ruifrok and Johnston 2001: light that passed through stains has an optical density that is
the sum of what each absorbs (Beer-Lambert). Blood smears are stained with azure and eosin; haematoxylin stands in for
the blue dye, as is usual. The light is taken as white, so that a tinted background changes along with the cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bloodcell_lib.microscope import DARKEST, EOSIN, HAEMATOXYLIN


def basis(device: torch.device | str = "cpu") -> Tensor:
    """float32 (3, 3): rows of length 1 for haematoxylin, eosin, and what neither explains, at right angles to both."""
    two = torch.nn.functional.normalize(torch.tensor([HAEMATOXYLIN, EOSIN], device=device), dim=1)
    rest = torch.linalg.cross(two[0], two[1])
    return torch.cat([two, (rest / rest.norm())[None]])


def densities(x: Tensor) -> Tensor:
    """float (B, 3, H, W) in [0, 1] -> the same shape: natural optical densities of haematoxylin, eosin and the rest."""
    return torch.einsum("ks,bkhw->bshw", torch.linalg.inv(basis(x.device)), _absorbed(x))


def scale_stains(x: Tensor, haematoxylin: Tensor, eosin: Tensor) -> Tensor:
    """Multiplies the densities of the two stains, factors (B,); what neither explains stays.

    x float (B, 3, H, W) in [0, 1] -> the same shape and range; factors of 1 change nothing above `DARKEST`.
    """
    own = basis(x.device)
    factors = torch.stack([haematoxylin, eosin, torch.ones_like(eosin)], 1)  # (B, 3)
    matrix = torch.linalg.inv(own) @ (factors[:, :, None] * own)  # (B, 3, 3), row vectors from the left
    return torch.exp(-torch.einsum("bkc,bkhw->bchw", matrix, _absorbed(x))).clamp_(0, 1)


def _absorbed(x: Tensor) -> Tensor:
    return -torch.log(x.clamp_min(DARKEST))
