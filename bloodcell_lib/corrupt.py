"""What another microscope, camera or stain may do to a picture: ten corruptions, each in five severities.

After Hendrycks and Dietterich 2019, with what happens to blood smears in place of weather. Lengths are shares of the
image's side. Noise, photons and JPEG blocks are those of a camera with `CAMERA` pixels a side, whose picture is then
seen at the size at hand; so profiles of different sizes meet the same corruption. Where a picture may change either
way (brighter or darker), each draws its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bloodcell_lib import augment
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.jpeg import stored
from bloodcell_lib.stain import scale_stains

CAMERA = 224  # pixels of a side: the size of the full profile
BATCH = 256  # images that are held as floats at once
SEVERITIES = (1, 2, 3, 4, 5)


class Lot:
    """Draws for the images of a batch, on the CPU, so that every device gets the same."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, x: Tensor) -> Tensor:
        """One number in [0, 1) for each image, (B,)."""
        return torch.rand(len(x), generator=self.generator).to(x.device)

    def sign(self, x: Tensor) -> Tensor:
        """-1 or 1 for each image, (B,)."""
        return (self.uniform(x) < 0.5) * 2.0 - 1

    def normal(self, x: Tensor) -> Tensor:
        """A standard normal number for each value of x."""
        return torch.randn(x.shape, generator=self.generator).to(x.device)

    def poisson(self, rate: Tensor) -> Tensor:
        """A count for each value of `rate`."""
        return torch.poisson(rate.cpu(), generator=self.generator).to(rate.device)


def blur(x: Tensor, level: float, lot: Lot) -> Tensor:
    """Out of focus: a Gaussian; its sigma is `level` of the side."""
    return augment.blur(x, torch.full((len(x),), level * x.shape[-1], device=x.device))


def gaussian_noise(x: Tensor, level: float, lot: Lot) -> Tensor:
    """Read-out noise; its standard deviation is `level` of the full range in a pixel of the camera."""
    return x + level * x.shape[-1] / CAMERA * lot.normal(x)


def shot_noise(x: Tensor, level: float, lot: Lot) -> Tensor:
    """Little light: a white pixel of the camera counts `level` photons in each colour."""
    photons = level * (CAMERA / x.shape[-1]) ** 2
    return lot.poisson(x * photons) / photons


def jpeg(x: Tensor, level: float, lot: Lot) -> Tensor:
    """Stored by the camera as JPEG of quality `level`, and read again."""
    return stored(x, torch.full((len(x),), level), torch.full((len(x),), CAMERA))


def brightness(x: Tensor, level: float, lot: Lot) -> Tensor:
    """Exposure: all light times 1 + `level` or 1 - `level`."""
    return x * (1 + level * lot.sign(x))[:, None, None, None]


def contrast(x: Tensor, level: float, lot: Lot) -> Tensor:
    """Distance to the picture's mean grey, times 1 + `level` or 1 - `level`."""
    one = torch.ones(len(x), device=x.device)
    return augment.recolour(x, one, 1 + level * lot.sign(x), one, 0 * one)


def stain(x: Tensor, level: float, lot: Lot) -> Tensor:
    """Another laboratory's dyes: densities of haematoxylin and eosin, each times 1 + `level` or 1 - `level`."""
    return scale_stains(x, 1 + level * lot.sign(x), 1 + level * lot.sign(x))


def magnification(x: Tensor, level: float, lot: Lot) -> Tensor:
    """Another objective: 1 + `level` times as large, or as small."""
    return moved(x, scale=(1 + level) ** lot.sign(x))


def rotation(x: Tensor, level: float, lot: Lot) -> Tensor:
    """The slide turned by `level` degrees, to either side."""
    return moved(x, angle=level * lot.sign(x))


def translation(x: Tensor, level: float, lot: Lot) -> Tensor:
    """The cell off the centre by `level` of the side, in any direction."""
    towards = 2 * math.pi * lot.uniform(x)
    return moved(x, shift=level * torch.stack([towards.cos(), towards.sin()], 1))


def moved(x: Tensor, angle: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """`augment.affine` with what is not given left alone."""
    one = torch.ones(len(x), device=x.device)
    shift = torch.zeros(len(x), 2, device=x.device) if shift is None else shift
    return augment.affine(x, 0 * one if angle is None else angle, one if scale is None else scale, shift, one, one)


@dataclass(frozen=True)
class Corruption:
    """`apply(x, level, lot)`: float (B, 3, H, W) in [0, 1] -> the same shape. `levels`: one a severity, in `unit`."""

    name: str
    title: str
    unit: str
    levels: tuple[float, float, float, float, float]
    apply: Callable[[Tensor, float, Lot], Tensor]


# Photons and quality are those of ImageNet-C, the benchmark of Hendrycks and Dietterich; noise is one level weaker,
# because a smear is photographed in good light. Of what training varies too (brightness and contrast to 0.2,
# magnification to 0.1, rotation to 30 degrees, translation to 0.1 along each axis), the first or the first two levels
# lie within its range, and the others go on in like steps.
CORRUPTIONS = {
    row.name: row
    for row in (
        Corruption("blur", "Blur", "sigma, share of the side", (0.005, 0.01, 0.015, 0.02, 0.03), blur),
        Corruption("gaussian_noise", "Noise", "share of the range", (0.04, 0.08, 0.12, 0.18, 0.26), gaussian_noise),
        Corruption("shot_noise", "Shot noise", "photons", (60, 25, 12, 5, 3), shot_noise),
        Corruption("jpeg", "JPEG", "quality", (25, 18, 15, 10, 7), jpeg),
        Corruption("brightness", "Brightness", "factor 1 ± x", (0.1, 0.2, 0.3, 0.4, 0.5), brightness),
        Corruption("contrast", "Contrast", "factor 1 ± x", (0.15, 0.3, 0.45, 0.6, 0.75), contrast),
        Corruption("stain", "Stain", "factor 1 ± x", (0.15, 0.3, 0.45, 0.6, 0.75), stain),
        Corruption("magnification", "Magnification", "factor 1 + x", (0.1, 0.2, 0.35, 0.5, 0.75), magnification),
        Corruption("rotation", "Rotation", "degrees", (15, 30, 45, 60, 90), rotation),
        Corruption("translation", "Translation", "share of the side", (0.05, 0.1, 0.15, 0.2, 0.25), translation),
    )
}


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """The images under a corruption, as uint8 or float in [0, 1], whichever they are; (n, 3, H, H).

    The same seed gives the same pictures on every device; severities share their draws, so that a picture that turns
    brighter does so at each. Raises BloodcellError for an unknown corruption or severity, or images of another shape.
    """
    if name not in CORRUPTIONS:
        raise BloodcellError(f"Unknown corruption '{name}': choose one of {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise BloodcellError(f"There is no severity {severity}: give one from 1 to 5.")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise BloodcellError(f"Images of shape {tuple(images.shape)}: give square ones in colour, (n, 3, H, H).")
    if not len(images):
        return images.clone()
    row, whole = CORRUPTIONS[name], images.dtype == torch.uint8
    lot = Lot(int(np.random.SeedSequence((seed, list(CORRUPTIONS).index(name))).generate_state(1)[0]))
    done = []
    for part in images.split(BATCH):
        x = part.float() / 255 if whole else part.float()
        x = row.apply(x, row.levels[severity - 1], lot).clamp_(0, 1)
        done.append((x * 255).round_().byte() if whole else x)
    return torch.cat(done)
