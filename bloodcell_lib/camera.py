"""Photographs of our cells as another site's microscope, dyes and camera would give them.

`travel` says what differs at its sites; here `drawn` draws anything between a little beyond them, from which `reader`
learns to read and `abroad` makes training images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from bloodcell_lib import augment
from bloodcell_lib.jpeg import FINEST, stored
from bloodcell_lib.stain import scale_stains

PIXELS = 336  # of a photograph's side that is stored as JPEG, so that a crop of 240 has those of `corrupt`
FEW = 32  # photographs whose samples, several a pixel, are held at once
# A little beyond the sites of `travel` on either side, so that these are no ends of a scale.
ZOOM, TINT, STAIN, FIELD, BLUR, QUALITY = (0.45, 3.3), 0.18, 0.45, 0.45, 0.008, 15
CHANGED = 0.8  # share of the photographs in which each of these is drawn; in the others it is ours


@dataclass(frozen=True)
class Conditions:
    """How each of B photographs is taken. zoom: magnification, (B,). field: share of the side that the camera sees, its
    edge is repeated beyond, (B,). dyes: factors on the densities of haematoxylin and eosin, (B, 2). light: factors on
    the colour channels, (B, 3). blur: sigma as a share of the side, (B,). quality: of the JPEG file, (B,), 0 for none.
    """

    zoom: Tensor
    field: Tensor
    dyes: Tensor
    light: Tensor
    blur: Tensor
    quality: Tensor

    def to(self, device: torch.device) -> Conditions:
        """The same on a device."""
        return Conditions(*(getattr(self, field.name).to(device) for field in fields(self)))


def drawn(n: int, generator: torch.Generator) -> Conditions:
    """Conditions for n photographs, on the CPU, each even in its range, and magnification in its logarithm."""

    def draw(low: float, high: float, ours: float, times: int = 1) -> Tensor:
        on = torch.rand(n, 1, generator=generator) < CHANGED
        value = low + (high - low) * torch.rand(n, times, generator=generator)
        return torch.where(on, value, ours).squeeze(1)

    return Conditions(
        zoom=draw(*map(math.log, ZOOM), 0.0).exp(),
        field=draw(FIELD, 1, 1),
        dyes=draw(1 - STAIN, 1 + STAIN, 1, 2),
        light=draw(1 - TINT, 1 + TINT, 1, 3),
        blur=draw(0, BLUR, 0),
        quality=draw(QUALITY, FINEST, 0),
    )


def photographed(photographs: Tensor, how: Conditions, pixels: int, seen: float = 1.0) -> Tensor:
    """Whole photographs, uint8 (B, 3, S, S), as they are taken elsewhere: float (B, 3, pixels, pixels) in [0, 1].

    seen: share of the side of what the camera sees that is kept, about the centre.
    """
    x = torch.empty(len(photographs), 3, pixels, pixels, device=photographs.device)
    for alike in (how.zoom < 1, how.zoom >= 1):  # the smaller ones take more samples a pixel
        for some in alike.nonzero()[:, 0].split(FEW) if alike.any() else ():
            x[some] = taken(photographs[some].float() / 255, how.zoom[some], how.field[some], pixels, seen)
    if (how.dyes != 1).any():
        x = scale_stains(x, *how.dyes.T)
    if (how.light != 1).any():
        x = (x * how.light[:, :, None, None]).clamp_(0, 1)
    if how.blur.any():
        x = augment.blur(x, how.blur / seen * pixels)
    if (filed := how.quality > 0).any():
        x[filed] = stored(x[filed], how.quality[filed], torch.full_like(how.quality[filed], round(PIXELS * seen)))
    return x.clamp_(0, 1)


def taken(x: Tensor, zoom: Tensor, field: Tensor, pixels: int, seen: float = 1.0) -> Tensor:
    """What a camera sees of photographs: float (B, C, S, S) -> (B, C, pixels, pixels), with the centre where it was.

    zoom: magnification, (B,); field: share of the side beyond which the edge is repeated, (B,); seen: share of the side
    of what a camera sees that is kept.
    """
    # As many samples a pixel as it covers, averaged: a mean, as a camera takes it, in place of single points.
    finer = max(1, math.ceil(float(seen / zoom.min()) * x.shape[-1] / pixels - 1e-3))
    n, edge = pixels * finer, field - 1 / x.shape[-1]  # the middle of the last pixel in it
    at = seen * ((torch.arange(n, device=x.device) + 0.5) / n * 2 - 1) / zoom[:, None]  # (B, n), from -1 to 1
    at = at.clamp(-edge[:, None], edge[:, None])
    grid = torch.stack([at[:, None].expand(-1, n, -1), at[:, :, None].expand(-1, -1, n)], 3)
    return F.avg_pool2d(F.grid_sample(x, grid, padding_mode="border", align_corners=False), finer)
