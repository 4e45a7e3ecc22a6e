"""Augmentation of a whole batch where it lies, each image with its own parameters.

All geometry is one affine resampling, all colour one 3 x 4 matrix for each image, so that the cost is one pass of
each, whatever is switched on. Ranges mean what they mean in torchvision's `RandomAffine` and `ColorJitter`; two
deviations: colours are clamped once at the end rather than after every step, and hue turns colours about the grey
axis (a rotation of the I-Q plane of YIQ) rather than in HSV, which is not linear.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bloodcell_lib.jpeg import FINEST, stored
from bloodcell_lib.stain import scale_stains

GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, as in torchvision


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges from which each image draws; the zeros and the Nones switch a part off.

    flips: horizontal and vertical, each with probability 1/2. rotation: degrees to either side. scale: lowest and
    highest factor, above 1 enlarges. translate: largest shift as a share of the side. brightness, contrast,
    saturation: factors from 1 - x to 1 + x. hue: share of a full turn, to either side. blur: largest sigma of a
    Gaussian in pixels, from 0. turns: by 0 to 3 quarters, each as likely, which with flips makes the eight
    symmetries of the square. stain: the densities of haematoxylin and eosin, each times a factor from 1 - x to 1 + x
    (Tellez et al. 2018). tint: each colour channel times a factor of its own, as another white balance does. jpeg:
    lowest quality of a JPEG file that about every second picture has been through, at half its pixels or more.
    """

    flips: bool = True
    rotation: float = 30.0
    scale: tuple[float, float] = (0.9, 1.1)
    translate: float = 0.1
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    blur: float = 0.0
    stain: float = 0.0
    turns: bool = False
    tint: float = 0.0
    jpeg: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether any part of the geometry beyond flips is on."""
        return bool(self.rotation or self.turns or self.translate or tuple(self.scale) != (1.0, 1.0))

    @property
    def colours(self) -> bool:
        """Whether any part of the colour is on."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)


NONE = AugmentConfig(False, 0.0, (1.0, 1.0), 0.0, 0.0, 0.0, 0.0, 0.0)


class Augment:
    """`Augment(config)(batch)`: uint8 (B, 3, H, W) -> float32 (B, 3, H, W) in [0, 1], on the batch's device.

    With a generator (on the same device) the result is reproducible.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
        c, n = self.config, len(batch)
        x = batch.to(torch.float32) / 255

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(n, generator=generator, device=batch.device) * (high - low) + low

        def sign() -> Tensor:
            if not c.flips:
                return torch.ones(n, device=batch.device)
            return torch.randint(0, 2, (n,), generator=generator, device=batch.device) * 2.0 - 1

        # All but flips are drawn whether or not they are used, so that switching one off leaves the others' draws.
        flip_x, flip_y = sign(), sign()
        angle = uniform(-c.rotation, c.rotation)
        scale = uniform(*c.scale)
        shift = torch.stack([uniform(-c.translate, c.translate) for _ in range(2)], 1)  # (B, 2), share of the side
        brightness, contrast, saturation = (uniform(1 - v, 1 + v) for v in (c.brightness, c.contrast, c.saturation))
        hue, sigma = uniform(-c.hue, c.hue), uniform(0, c.blur)

        if c.turns:  # drawn only here, as the stains below: a draw that older runs had not would change them
            angle = angle + 90 * torch.randint(0, 4, (n,), generator=generator, device=batch.device)
        if c.moves or c.flips:
            x = affine(x, angle, scale, shift, flip_x, flip_y)
        if c.stain:
            x = scale_stains(x, uniform(1 - c.stain, 1 + c.stain), uniform(1 - c.stain, 1 + c.stain))
        if c.tint:
            gains = torch.stack([uniform(1 - c.tint, 1 + c.tint) for _ in range(3)], 1)  # (B, 3)
            x = (x * gains[:, :, None, None]).clamp_(0, 1)
        if c.colours:
            x = recolour(x, brightness, contrast, saturation, hue)
        if c.blur:
            x = blur(x, sigma, c.blur)
        if c.jpeg:
            some = uniform(0, 1) < 0.5
            quality, camera = uniform(c.jpeg, FINEST), uniform(0.5, 1) * x.shape[-1]
            if some.any():
                x[some] = stored(x[some], quality[some], camera[some])
        return x


def affine(x: Tensor, angle: Tensor, scale: Tensor, shift: Tensor, flip_x: Tensor, flip_y: Tensor) -> Tensor:
    """Flips, turns (degrees, anticlockwise positive), scales and shifts (share of the side) about the centre.

    x float (B, C, H, W); flips are -1 or 1, (B,). One bilinear resampling; what comes in at the edges mirrors the
    image, so that no black corner tells the network that a picture was turned.
    """
    height, width = x.shape[-2:]
    turn = torch.deg2rad(angle)
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    # affine_grid asks for the inverse map, output to input, in units of half the side: hence the aspect ratio.
    aspect = height / width
    inverse = torch.stack(
        [
            torch.stack([flip_x * cos, -flip_x * sin * aspect], 1),
            torch.stack([flip_y * sin / aspect, flip_y * cos], 1),
        ],
        1,
    )  # (B, 2, 2)
    offset = -inverse @ (2 * shift)[:, :, None]  # (B, 2, 1)
    grid = F.affine_grid(torch.cat([inverse, offset], 2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def recolour(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Brightness, contrast, saturation, then hue as one matrix an image; factors (B,), hue in turns (B,).

    x float (B, 3, H, W) in [0, 1] -> the same shape, clamped to [0, 1].
    """
    grey, eye = constants(x.device)[0][0], torch.eye(3, device=x.device)
    to_grey = grey.expand(3, 3)  # every output row is the luma
    mean = (x.mean((2, 3)) @ grey) * brightness  # (B,) mean luma once brightness is applied
    mix = saturation[:, None, None]
    matrix = hue_matrix(hue) @ (mix * eye + (1 - mix) * to_grey)  # (B, 3, 3)
    # Contrast blends with the mean luma, a grey that saturation and hue leave as it is.
    offset = ((1 - contrast) * mean)[:, None, None, None]
    matrix = matrix * (brightness * contrast)[:, None, None]
    return (torch.einsum("bij,bjhw->bihw", matrix, x) + offset).clamp_(0, 1)


def hue_matrix(turns: Tensor) -> Tensor:
    """Rotation of the chrominance plane of YIQ by `turns` of a full circle: (B,) -> (B, 3, 3) acting on RGB."""
    to_yiq, from_yiq = constants(turns.device)
    cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(turns), torch.ones_like(turns)
    spin = torch.stack([one, zero, zero, zero, cos, sin, zero, -sin, cos], 1).view(-1, 3, 3)
    return from_yiq @ spin @ to_yiq


@functools.cache
def constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """RGB to YIQ, whose first row is GREY, and its inverse, float32 (3, 3); copied once, since a copy from the host
    and an inversion there both make the CPU wait for a GPU."""
    to_yiq = torch.tensor([GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float32)
    return to_yiq.to(device), torch.linalg.inv(to_yiq).to(device)


def blur(x: Tensor, sigma: Tensor, largest: float | None = None) -> Tensor:
    """Gaussian blur with a sigma of its own for each image, (B,) in pixels; x float (B, C, H, W).

    Separable, as one grouped convolution along each axis; edges mirror. largest: a bound on sigma, which spares the
    CPU the wait for a GPU that looking for the maximum would be.
    """
    radius = max(1, math.ceil(3 * (float(sigma.max()) if largest is None else largest)))
    radius = min(radius, min(x.shape[-2:]) - 1)  # a mirror reaches no further than the image
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-(at**2) / (2 * sigma[:, None].clamp_min(1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)[:, None]  # (B*C, 1, K)
    planes = x.reshape(1, -1, *x.shape[-2:])
    padded = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    padded = F.conv2d(padded, kernel[:, :, None, :], groups=len(kernel))
    return F.conv2d(padded, kernel[:, :, :, None], groups=len(kernel)).view_as(x)
