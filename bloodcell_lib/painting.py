"""Painting over parts of images: blending, filling holes, masks moved elsewhere. Whole batches, no pixel by itself.

Images are uint8 (n, 3, H, W), masks bool (n, H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bloodcell_lib.segment import dilate

MARGIN = 0.02  # of the image's side: the halo around a cell that goes with it when it is painted over
PLACES = 16  # tried for a moved mask


def blend(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """uint8 (n, 3, H, W): `inside` where the mask, bool (n, H, W), is, `outside` elsewhere, mixed over a seam of three
    pixels so that the edge is no sharper than the picture. Both are (n, 3, H, W) or (n, 3, 1, 1), 0 to 255."""
    share = F.avg_pool2d(F.pad(mask[:, None].float(), (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (share * inside + (1 - share) * outside).round().byte()


def median_colour(images: Tensor, mask: Tensor) -> Tensor:
    """Median of each colour where the mask, bool (n, H, W), is: float (n, 3, 1, 1); of the whole image where it is
    nowhere."""
    mask = mask | ~mask.any((1, 2), keepdim=True)
    kept = images.float().masked_fill(~mask[:, None], torch.nan)
    return kept.flatten(2).nanmedian(2).values[:, :, None, None]


def shuffled(images: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Each pixel replaced by one drawn, with replacement, from where the image's mask is: its colours without shape."""
    weight = (mask | ~mask.any((1, 2), keepdim=True)).flatten(1).float()
    at = torch.multinomial(weight, weight.shape[1], replacement=True, generator=generator)
    return images.flatten(2).gather(2, at[:, None].expand(-1, 3, -1)).view(images.shape)


def inpaint(images: Tensor, hole: Tensor) -> Tensor:
    """Fills the hole, bool (n, H, W), smoothly from around it: uint8 (n, 3, H, W).

    Push-pull (Gortler et al. 1996): colours are averaged over what is known at ever coarser scales, and each scale
    fills what the finer one does not know.
    """
    known = (~hole)[:, None].float()
    levels = [(images.float() * known, known)]
    while max(levels[-1][1].shape[-2:]) > 1:
        levels.append(tuple(F.avg_pool2d(part, 2, 2, ceil_mode=True) for part in levels[-1]))
    colour = levels[-1][0] / levels[-1][1].clamp_min(1e-6)
    for total, share in reversed(levels[:-1]):
        coarse = F.interpolate(colour, share.shape[-2:], mode="bilinear")
        colour = torch.where(share > 0, total / share.clamp_min(1e-6), coarse)
    return blend(colour, images, hole)


def move(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Each mask, bool (n, H, W), turned by a random angle and moved to where it covers most that it did not before.

    The best of PLACES random places; a cell that fills the picture cannot be left altogether.
    """
    n, h, w = mask.shape
    best, score = mask.clone(), torch.full((n,), -torch.inf)
    for _ in range(PLACES):
        angle, towards = 2 * torch.pi * torch.rand(2, n, generator=generator)
        far = 0.5 + 0.5 * torch.rand(n, generator=generator)  # 1 is half the side
        cos, sin = angle.cos(), angle.sin()
        x, y = far * towards.cos(), far * towards.sin()
        theta = torch.stack([cos, -sin * h / w, x, sin * w / h, cos, y], 1).view(n, 2, 3)
        grid = F.affine_grid(theta, [n, 1, h, w], align_corners=False)
        new = F.grid_sample(mask[:, None].float(), grid, align_corners=False)[:, 0] > 0.5
        gained = (new & ~mask).sum((1, 2)) - (new & mask).sum((1, 2)).float()
        better = gained > score
        best[better], score = new[better], torch.maximum(gained, score)
    return best


def wider(mask: Tensor) -> Tensor:
    """The mask, bool (n, H, W), with the halo around it."""
    margin = max(1, round(MARGIN * mask.shape[-1]))
    return dilate(mask[:, None].float(), margin)[:, 0] > 0
