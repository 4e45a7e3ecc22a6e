"""Labels that are shares of classes: of images mixed in pairs, mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019),
which draw from torch's global random state, as dropout does; and of what other networks say (Hinton et al. 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bloodcell_lib.errors import BloodcellError


def mix(x: Tensor, labels: Tensor, classes: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Each image with its neighbour in the batch: float (B, 3, H, W), int64 (B,) -> images, shares float (B, classes).

    mixup, cutmix: alpha of the share's Beta distribution, 0 for none; with both, each image is mixed one way or the
    other, as likely. A batch comes shuffled, so that a neighbour is any other image.
    """
    targets = F.one_hot(labels, classes).to(x.dtype)
    whole = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    cuts = whole if not cutmix else ~whole if not mixup else torch.rand(len(x), device=x.device) < 0.5
    keep = torch.ones(len(x), 1, *x.shape[-2:], dtype=x.dtype, device=x.device)  # how much of each pixel is kept
    if mixup:
        keep = keep * _share(mixup, x)[:, None, None, None]
    if cutmix:
        keep = torch.where(cuts[:, None, None, None], outside_boxes(_share(cutmix, x), *x.shape[-2:]), keep)
    share = keep.mean((1, 2, 3))[:, None]
    return keep * x + (1 - keep) * x.roll(1, 0), share * targets + (1 - share) * targets.roll(1, 0)


def distilled(labels: Tensor, taught: Tensor | None, classes: int, share: float) -> Tensor:
    """Labels int64 (n,) by 1 - share, and by share what other networks say, probabilities (n, classes): float32, alike.

    Raises BloodcellError where these are no probabilities of each class for each image.
    """
    if (
        taught is None
        or taught.shape != (len(labels), classes)
        or not (taught.isfinite().all() and (taught >= 0).all() and ((taught.sum(1) - 1).abs() < 0.01).all())
    ):
        raise BloodcellError(
            f"To distil takes what other networks say of each of {len(labels)} training images: give `taught`, "
            f"{classes} probabilities an image."
        )
    return F.one_hot(labels, classes).float().lerp(taught.to(labels.device, torch.float32), share)


def outside_boxes(share: Tensor, height: int, width: int) -> Tensor:
    """1 outside and 0 inside of a box that takes 1 - share of an image, cut off at the edges; float (B, 1, H, W).

    Its centre lies anywhere, so that less may be taken (Yun et al. 2019, equation 2).
    """
    sides = (1 - share).sqrt()[:, None]
    inside = []
    for length in (height, width):
        centre = torch.rand(len(share), 1, device=share.device) * length
        at = torch.arange(length, device=share.device) + 0.5
        inside.append((at - centre).abs() < sides * length / 2)  # (B, length)
    return (~(inside[0][:, None, :, None] & inside[1][:, None, None, :])).to(share.dtype)


def _share(alpha: float, like: Tensor) -> Tensor:
    concentration = torch.full((len(like),), alpha, dtype=like.dtype, device=like.device)
    return torch.distributions.Beta(concentration, concentration, validate_args=False).sample()
