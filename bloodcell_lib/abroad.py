"""Training images as they come back from abroad: taken at another site, and undone as far as `reader` can.

What it leaves or gets wrong, a network that learns from these has seen.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bloodcell_lib import camera, corrupt, microscope, reader
from bloodcell_lib.data import CellImages
from bloodcell_lib.reader import Reader


def with_copies(
    cells: CellImages, photographs: CellImages, eye: Reader, crop: int | None, times: int, seed: int = 0
) -> CellImages:
    """Images as a network sees them, and after them so many copies of each from sites of its own.

    photographs: the same images whole; crop: side of the central square of these that the network sees, in pixels of
    `microscope.SIDE`, None for the whole.
    """
    generator, pixels = torch.Generator().manual_seed(seed), cells.images.shape[-1]
    copies = [cells.images]
    for _ in range(times):
        for part in photographs.images.split(corrupt.BATCH):
            x = camera.photographed(part, camera.drawn(len(part), generator), microscope.SIDE)
            pictures, readings = reader.pictured(eye, (x * 255).round().byte())
            views = microscope.undone(pictures, readings, pixels, crop)
            copies.append(torch.from_numpy(views).permute(0, 3, 1, 2))
    return replace(
        cells,
        images=torch.cat(copies),
        labels=cells.labels.repeat(times + 1),
        names=cells.names * (times + 1),
        sha256=cells.sha256 * (times + 1),
    )
