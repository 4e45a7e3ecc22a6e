"""A photograph as the microscope of our images would have given it: what was read of another is undone.

What is read, by `reader`, are the natural logarithms of six factors, of which ours have 0: the magnification, the light
in each colour, the densities of the two dyes; and the blur, the sigma of a Gaussian in hundredths of the photograph's
side. Imports no torch, since `predict` does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

READ = ("zoom", "red", "green", "blue", "haematoxylin", "eosin", "blur")
SIDE = 360  # pixels of a photograph's side, in which crops are given
LOOK = 96  # pixels of a side at which a photograph is read
FARTHEST = 1.5  # of the magnification, as its logarithm, that is undone: what is read beyond is a mistake
NOISE = 0.02  # power of noise in a picture beside that of what it shows; more would sharpen less
# Optical density of each stain in red, green and blue light: Ruifrok and Johnston 2001, from their measured samples.
HAEMATOXYLIN, EOSIN = (0.650, 0.704, 0.286), (0.072, 0.990, 0.105)
_TWO = np.array([HAEMATOXYLIN, EOSIN]) / np.linalg.norm([HAEMATOXYLIN, EOSIN], axis=1, keepdims=True)
_REST = np.cross(*_TWO)  # what neither explains, at right angles to both
BASIS = np.stack([*_TWO, _REST / np.linalg.norm(_REST)])
DARKEST = 1 / 255  # a black pixel has no finite density


def look(image: Image.Image) -> np.ndarray:
    """The whole photograph as it is read: uint8 (LOOK, LOOK, 3)."""
    return view(image, 1.0, LOOK)


def undone(images: Sequence[Image.Image], readings: np.ndarray, pixels: int, crop: float | None = None) -> np.ndarray:
    """Photographs in RGB, of any size, with what was read of each, float (n, 7): uint8 (n, pixels, pixels, 3).

    crop: side of the central square that the network sees, in pixels of ours, None for the whole.
    """
    shares = (crop or SIDE) / SIDE * np.exp(readings[:, 0].clip(-FARTHEST, FARTHEST))
    views = np.stack([view(image, share, pixels) for image, share in zip(images, shares)])
    return recoloured(sharpened(views, readings[:, 6] / 100 / shares * pixels), readings)


def view(image: Image.Image, share: float, pixels: int) -> np.ndarray:
    """The central square that is `share` of the shorter side, uint8 (pixels, pixels, 3); beyond the edge, the edge."""
    side = min(image.size)
    inside = min(side, max(1, round(share * side)))
    left, top = (image.width - inside) // 2, (image.height - inside) // 2
    seen = max(1, round(pixels * min(1.0, 1 / share)))  # pixels of the view that show something
    square = image.crop((left, top, left + inside, top + inside)).resize((seen, seen), Image.Resampling.BILINEAR)
    before = (pixels - seen) // 2
    width = (before, pixels - seen - before)
    return np.pad(np.asarray(square), (width, width, (0, 0)), mode="edge")


def sharpened(images: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Pictures without the Gaussian blur of `sigma`, (n,) in pixels: uint8 (n, H, W, 3) -> the same shape.

    Wiener's filter (Wiener 1949) for white noise of the power `NOISE`, scaled to leave the mean as it is.
    """
    blurred = np.flatnonzero(sigma > 0)
    if not len(blurred):
        return images
    edge = min(16, *(side - 1 for side in images.shape[1:3]))  # mirrored, since the transform joins opposite edges
    x = np.pad(images[blurred].astype(np.float32), [(0, 0), (edge, edge), (edge, edge), (0, 0)], mode="reflect")
    down, across = np.fft.fftfreq(x.shape[1])[:, None], np.fft.rfftfreq(x.shape[2])
    passed = np.exp(-2 * np.pi**2 * sigma[blurred, None, None] ** 2 * (down**2 + across**2))
    back = (1 + NOISE) * passed / (passed**2 + NOISE)
    x = np.fft.irfft2(np.fft.rfft2(x, axes=(1, 2)) * back[..., None], s=x.shape[1:3], axes=(1, 2))
    sharp = images.copy()
    sharp[blurred] = np.rint(x[:, edge : edge + images.shape[1], edge : edge + images.shape[2]].clip(0, 255))
    return sharp


def recoloured(images: np.ndarray, readings: np.ndarray) -> np.ndarray:
    """Pictures with the light and the dyes of ours: uint8 (n, H, W, 3) and what was read, (n, 7) -> the same shape.

    The light is divided out, then the densities of the dyes are (`stain.scale_stains`).
    """
    factors = np.exp(-np.column_stack([readings[:, 4:6], np.zeros(len(readings))]))
    matrix = (np.linalg.inv(BASIS) @ (factors[:, :, None] * BASIS)).astype(np.float32)  # (n, 3, 3)
    light = np.exp(readings[:, 1:4]).astype(np.float32)[:, None, None]
    density = -np.log(np.clip(images / np.float32(255) / light, DARKEST, 1))
    return np.rint(255 * np.exp(-np.matmul(density, matrix[:, None])).clip(0, 1)).astype(np.uint8)
