"""Where in a picture the cell is, and where its nucleus: by colour, without training.

Light through a stain falls off exponentially, so that optical densities of stains add up (Ruifrok and Johnston 2001).
Haemoglobin, which colours the red cells, absorbs green and blue in a fixed ratio; the dyes of a white cell do not. What
remains of a pixel's density beside haemoglobin's direction tells the two apart, and how much of it there is tells the
nucleus (a platelet's granules) from cytoplasm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from bloodcell_lib.errors import BloodcellError

# Density of haemoglobin in red, green and blue light, measured as the median over the red cells in the corners of 320
# course images; its spread there is some 0.03 of the length.
HAEMOGLOBIN = (0.20, 0.30, 0.18)
PALE = 0.07  # density along haemoglobin's direction; below, nothing but light has passed
OTHER = 0.09  # tangent of the angle to haemoglobin's direction; above, no red cell
STAINED = 0.1  # least density of dye in a nucleus or granule, so that an empty field has none
WORK = 160  # pixels: larger images are measured at this size, which the radii below are made for
SMOOTH = 3  # pixels: radius of the disc that every part of a cell must hold, so that neighbours and fringes fall off
REACH = 0.8  # farthest that cytoplasm reaches from the nucleus, in square roots of the nucleus's area
BATCH = 128

IN_PLANE = np.zeros((3, 3, 3), dtype=bool)  # neighbours within an image, never those in the next one
IN_PLANE[1] = True
BESIDE = ndimage.generate_binary_structure(3, 1) & IN_PLANE


class Masks(NamedTuple):
    """bool (n, H, W) each: the whole cell at the centre, and its nucleus, which lies inside; empty where none is."""

    cell: Tensor
    nucleus: Tensor


def segment(images: Tensor) -> Masks:
    """The cell nearest to the centre of each image, uint8 (n, 3, H, W).

    Made for one stained cell among red ones on a light field. It takes for the cell's nucleus whatever is stained most,
    which in a basophil includes the granules; tails and threads thinner than `SMOOTH` are cut off.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise BloodcellError(f"Images of shape {tuple(images.shape)}, {images.dtype}: give uint8 (n, 3, H, W).")
    size = images.shape[-2:]
    if not len(images):
        return Masks(*torch.zeros(2, 0, *size, dtype=torch.bool))
    found = [_segment(_reduced(batch)) for batch in images.cpu().split(BATCH)]
    return Masks(*(_enlarged(torch.cat(part), size) for part in zip(*found)))


def densities(images: Tensor) -> tuple[Tensor, Tensor]:
    """Haemoglobin-like and other density, float (n, 1, H, W) each, of float images (n, 3, H, W) from 0 to 255.

    The first is the length of the optical density (natural logarithm) along haemoglobin's direction, the second that of
    what remains. The light is each image's own: of every colour the level that one pixel in twenty exceeds.
    """
    light = images.flatten(2).quantile(0.95, dim=2)[:, :, None, None]
    density = torch.log((light + 1) / (images + 1)).clamp_min(0)
    direction = F.normalize(torch.tensor(HAEMOGLOBIN), dim=0)[:, None, None]
    red = (density * direction).sum(1, keepdim=True)
    return red, _mean(density - red * direction).norm(dim=1, keepdim=True)


def otsu(values: Tensor, bins: int = 128) -> Tensor:
    """The threshold of each image, float (n, 1, 1, 1), for values (n, 1, H, W) in [0, 1], beyond which they are cut.

    The one that separates the means of both sides most, weighted by their sizes (Otsu 1979).
    """
    at = (values.flatten(1) * bins).long().clamp(0, bins - 1)
    count = torch.zeros(len(values), bins).scatter_add_(1, at, torch.ones(at.shape))
    level = (torch.arange(bins) + 0.5) / bins
    below, mass = count.cumsum(1), (count * level).cumsum(1)
    n, total = below[:, -1:], mass[:, -1:]
    between = (total * below / n - mass) ** 2 / (below * (n - below)).clamp_min(1)
    return ((between.argmax(1) + 1) / bins).view(-1, 1, 1, 1)


def _segment(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cell and nucleus, float (n, 1, h, w) of zeros and ones, for float images (n, 3, h, w)."""
    red, dye = densities(x)
    nucleus = dilate(erode((dye > otsu(dye.clamp(0, 1)).clamp_min(STAINED)).float(), 1), 1)
    seed = _nearest(nucleus)
    # Colour is a ratio, which is uncertain where there is little of either.
    no_red_cell = _mean(dye) / (_mean(red) + 0.02) > OTHER
    body = torch.maximum((no_red_cell & (red > PALE)).float(), nucleus)
    body = _filled(erode(dilate(body, 1), 1))
    body = torch.maximum(_opened(body), seed)
    nucleus = nucleus * _connected(body, seed)
    reach = REACH * nucleus.sum((1, 2, 3), keepdim=True).sqrt()
    body = torch.maximum(_opened(_filled(_grown(nucleus, body, reach))), seed)
    body = _connected(body, seed)
    return body, nucleus * body


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Adds to a mask of zeros and ones, float (n, 1, H, W), all that is within `radius` pixels, in nearly a disc."""
    for i in range(radius):
        mask = _step(mask, i)
    return mask


def erode(mask: Tensor, radius: int) -> Tensor:
    """Takes away what is within `radius` pixels of the outside."""
    return 1 - dilate(1 - mask, radius)


def _step(mask: Tensor, i: int) -> Tensor:
    """One pixel more; by a square each third time and by a cross else, which in turn make an octagon."""
    if i % 3 == 1:
        return F.max_pool2d(mask, 3, 1, 1)
    return torch.maximum(F.max_pool2d(mask, (3, 1), 1, (1, 0)), F.max_pool2d(mask, (1, 3), 1, (0, 1)))


def _opened(mask: Tensor) -> Tensor:
    return dilate(erode(mask, SMOOTH), SMOOTH)


def _grown(seed: Tensor, inside: Tensor, reach: Tensor) -> Tensor:
    """Reconstruction of `inside` from `seed`, as many pixels far as `reach`, float (n, 1, 1, 1), says."""
    for i in range(int(reach.max())):
        seed = torch.where(reach > i, torch.minimum(_step(seed, i), inside), seed)
    return seed


def _connected(mask: Tensor, seed: Tensor) -> Tensor:
    """The parts of `mask` that touch `seed`."""
    parts, count = ndimage.label(mask[:, 0].numpy() > 0, IN_PLANE)
    kept = np.zeros(count + 1, dtype=np.float32)
    kept[np.unique(parts[seed[:, 0].numpy() > 0])] = 1
    kept[0] = 0
    return torch.from_numpy(kept[parts])[:, None]


def _filled(mask: Tensor) -> Tensor:
    return torch.from_numpy(ndimage.binary_fill_holes(mask[:, 0].numpy() > 0, BESIDE).astype(np.float32))[:, None]


def _nearest(mask: Tensor) -> Tensor:
    """Of each image's mask what is nearest to the centre, and all that is at most SMOOTH pixels farther from it."""
    h, w = mask.shape[-2:]
    y, x = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    far = torch.where(mask > 0, torch.hypot(y[:, None], x[None]), torch.inf)
    return mask * (far <= far.amin((1, 2, 3), keepdim=True) + SMOOTH)


def _mean(x: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels; the sensor's noise is in every colour by itself and would pass for a dye."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _reduced(images: Tensor) -> Tensor:
    x = images.float()
    if max(x.shape[-2:]) <= WORK:
        return x
    scale = WORK / max(x.shape[-2:])
    size = [max(8, round(side * scale)) for side in x.shape[-2:]]
    return F.interpolate(x, size, mode="bilinear", antialias=True)


def _enlarged(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """bool (n, H, W) of a mask (n, 1, h, w)."""
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size, mode="bilinear")
    return mask[:, 0] > 0.5
