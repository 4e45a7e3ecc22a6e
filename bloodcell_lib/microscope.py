"""A photograph as the microscope of our images would have given it: what was read of another is undone.

What is read, by `reader`, are the natural logarithms of six factors, of which ours have 0: the magnification, the light
in each colour, the densities of the two dyes. Imports no torch, since `predict` does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

READ = ("zoom", "red", "green", "blue", "haematoxylin", "eosin")
SIDE = 360  # pixels of a photograph's side, in which crops are given
LOOK = 96  # pixels of a side at which a photograph is read
STEADY = 0.15  # a magnification read as closer to ours than that is left alone: so far off are one in twenty of ours
# Optical density of each stain in red, green and blue light: Ruifrok and Johnston 2001, from their measured samples.
HAEMATOXYLIN, EOSIN = (0.650, 0.704, 0.286), (0.072, 0.990, 0.105)
DARKEST = 1 / 255  # a black pixel has no finite density


def look(image: Image.Image) -> np.ndarray:
    """The whole photograph as it is read: uint8 (LOOK, LOOK, 3)."""
    return view(image, 1.0, LOOK)


def undone(images: Sequence[Image.Image], readings: np.ndarray, pixels: int, crop: float | None = None) -> np.ndarray:
    """Photographs in RGB, of any size, with what was read of each, float (n, 6): uint8 (n, pixels, pixels, 3).

    crop: side of the central square that the network sees, in pixels of ours, None for the whole.
    """
    zoom = np.where(np.abs(readings[:, 0]) < STEADY, 0.0, readings[:, 0])
    shares = (crop or SIDE) / SIDE * np.exp(zoom)
    return recoloured(np.stack([view(image, share, pixels) for image, share in zip(images, shares)]), readings)


def view(image: Image.Image, share: float, pixels: int) -> np.ndarray:
    """The central square that is `share` of the shorter side, uint8 (pixels, pixels, 3); beyond the edge, the edge."""
    side = max(1, round(share * min(image.size)))
    if (beyond := side - min(image.size)) > 0:
        width = [(beyond // 2 + 1,) * 2] * 2 + [(0, 0)]
        image = Image.fromarray(np.pad(np.asarray(image), width, mode="edge"))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((pixels, pixels), Image.Resampling.BILINEAR))


def recoloured(images: np.ndarray, readings: np.ndarray) -> np.ndarray:
    """Pictures with the light and the dyes of ours: uint8 (n, H, W, 3) and what was read, (n, 6) -> the same shape.

    The light is divided out, then the densities of the dyes are (`stain.scale_stains`).
    """
    two = np.array([HAEMATOXYLIN, EOSIN]) / np.linalg.norm([HAEMATOXYLIN, EOSIN], axis=1, keepdims=True)
    rest = np.cross(*two)
    basis = np.stack([*two, rest / np.linalg.norm(rest)])
    factors = np.exp(-np.column_stack([readings[:, 4:], np.zeros(len(readings))]))
    matrix = (np.linalg.inv(basis) @ (factors[:, :, None] * basis)).astype(np.float32)  # (n, 3, 3)
    light = np.exp(readings[:, 1:4]).astype(np.float32)[:, None, None]
    density = -np.log(np.clip(images / np.float32(255) / light, DARKEST, 1))
    return np.rint(255 * np.exp(-np.matmul(density, matrix[:, None])).clip(0, 1)).astype(np.uint8)
