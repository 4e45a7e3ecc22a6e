"""Pictures of no cell, made from pictures of cells: background, blank fields, noise, artefacts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CORNER = 5  # a corner of a fifth of the side lies outside nearly every cell
INK = (0.25, 0.12, 0.35)  # of precipitated dye


def draw(images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """uint8 (n, 3, H, H) -> the same shape by name, one picture for each: what a field holds where there is no cell.

    background: a corner, mirrored over the whole, so that its grain and its red cells keep their size. blank: the mean
    colour of that corner. noise: every level of every pixel by lot. artefacts: on the background, in turn, flecks of
    dye, an air bubble's rim, a scratch. The same seed gives the same pictures.
    """
    lot = torch.Generator().manual_seed(seed)
    field = background(images)
    blank = field.float().mean((2, 3), keepdim=True).round().byte().expand_as(images).contiguous()
    noise = torch.randint(0, 256, images.shape, generator=lot, dtype=torch.uint8)
    return {"background": field, "blank": blank, "noise": noise, "artefacts": artefacts(field, lot)}


def background(images: Tensor) -> Tensor:
    """The upper left corner of each image, mirrored until it fills the whole; (n, 3, H, H)."""
    side = images.shape[-1]
    size = max(2, side // CORNER)
    along = torch.arange(side) % (2 * size)
    back_and_forth = torch.where(along < size, along, 2 * size - 1 - along)
    return images[:, :, back_and_forth][:, :, :, back_and_forth]


def artefacts(field: Tensor, lot: torch.Generator) -> Tensor:
    """Flecks, a bubble or a scratch on each image of uint8 (n, 3, H, H)."""
    n, side = len(field), field.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, 1, 1, generator=lot) * (high - low) + low

    axis = (torch.arange(side) + 0.5) / side - 0.5  # lengths are shares of the side, from the centre
    y, x = axis[:, None], axis[None, :]
    soft = 1.0 / side
    # Flecks: eight discs, of which the nearest counts.
    apart = torch.hypot(x - uniform(-0.4, 0.4, 8), y - uniform(-0.4, 0.4, 8)) - uniform(0.01, 0.06, 8)
    flecks = _inside(apart.amin(1), soft)
    rim = torch.hypot(x - uniform(-0.2, 0.2), y - uniform(-0.2, 0.2)) - uniform(0.15, 0.4)
    bubble = _inside(rim.abs() - uniform(0.01, 0.03), soft)
    angle = uniform(0, math.pi)
    line = x * angle.cos() + y * angle.sin() - uniform(-0.2, 0.2)
    scratch = _inside(line.abs() - uniform(0.005, 0.02), soft)

    kind = (torch.arange(n) % 3)[:, None, None]
    cover = torch.where(kind == 0, flecks, torch.where(kind == 1, 0.7 * bubble, scratch))[:, None]  # (n, 1, H, H)
    colour = torch.where(kind[:, None] == 2, 1.0, torch.tensor(INK)[:, None, None])  # a scratch lets light through
    return ((field / 255 * (1 - cover) + colour * cover) * 255).round().byte()


def _inside(distance: Tensor, soft: float) -> Tensor:
    """1 where the distance is negative, 0 where it is positive, and in between over 2 * `soft`."""
    return (0.5 - distance / (2 * soft)).clamp(0, 1)
