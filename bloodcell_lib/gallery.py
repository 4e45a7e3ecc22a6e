"""Figures of the images themselves: how many there are of what, and what they look like."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bloodcell_lib import paths, synthetic
from bloodcell_lib.cells import CELL_TYPES, CLASS_MAP, TITLES, prefix
from bloodcell_lib.data import COURSE, SYNTHETIC, CellImages
from bloodcell_lib.style import GREY, INK, WIDTH, canvas, styled


@styled
def class_distribution(cells: CellImages) -> Figure:
    """Labelled images of each class, split by the finer type that the file names give."""
    figure, ((ax,),) = canvas(2.75, f"{int((cells.labels >= 0).sum()):,} labelled images: {cells.source}")
    labels = cells.labels.numpy()
    longest = max(1, np.bincount(labels[labels >= 0], minlength=1).max())
    for cell in CELL_TYPES:
        names = [cells.names[i] for i in np.flatnonzero(labels == cell.id)]
        finer = pd.Series([cell.prefixes.get(prefix(name), "other") for name in names], dtype=object).value_counts()
        outside, left = [], 0
        for k, (kind, count) in enumerate(finer.items()):
            colour = _lighter(cell.colour, 0.25 * k)
            ax.barh(cell.id, count, left=left, color=colour, height=0.8, edgecolor="white", linewidth=0.8)
            if len(finer) > 1 and len(kind) * 0.05 < 2.9 * count / longest:  # inches: 7 pt, bars of some 2.9 in
                dark = np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.5
                look = {"size": 7, "linespacing": 0.95, "color": "w" if dark else INK}
                ax.text(left + count / 2, cell.id, f"{kind}\n{count}", ha="center", va="center", **look)
            elif len(finer) > 1:
                outside.append(f"{kind} {count}")
            left += count
        ax.text(left + 0.015 * longest, cell.id - 0.17 * bool(outside), left, va="center", size=8)
        ax.text(left + 0.015 * longest, cell.id + 0.23, ", ".join(outside), va="center", size=7, color=GREY)
    ax.set(xlim=(0, longest), ylim=(7.5, -0.5), yticks=range(8), yticklabels=TITLES, xlabel="images")
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    return figure


@styled
def sample_sheet(cells: CellImages, per_class: int = 6, seed: int = 0) -> Figure:
    """A column of `per_class` pictures for each class, drawn at random with `seed`."""
    side = (WIDTH - 0.1) / len(CELL_TYPES)
    figure, (axes,) = canvas(per_class * side + 0.33, f"Pictures: {cells.source}", ncols=len(CELL_TYPES))
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    rng = np.random.default_rng(seed)
    for cell, ax in zip(CELL_TYPES, axes):
        members = np.flatnonzero(cells.labels.numpy() == cell.id)
        chosen = np.sort(rng.permutation(members)[:per_class])
        height, width = cells.images.shape[-2:]
        column = np.full((per_class * height, width, 3), 255, dtype=np.uint8)
        for k, i in enumerate(chosen):
            column[k * height : (k + 1) * height] = cells.images[i].permute(1, 2, 0).numpy()
        ax.imshow(column, extent=(0, 1, 0, per_class), aspect="equal")
        for k in range(1, per_class):
            ax.axhline(k, color="w", linewidth=1.5)
        ax.text(0.5, per_class + 0.17, cell.title.replace(" ", "\n"), size=8, ha="center", linespacing=0.95)
        ax.plot([0.02, 0.98], [per_class + 0.05] * 2, color=cell.colour, linewidth=2.5, clip_on=False)
        ax.axis("off")
    return figure


def manifest_cells() -> CellImages | None:
    """Names and classes of the course's training images, without pictures, if data/manifest.csv lists them."""
    if not paths.MANIFEST.exists():
        return None
    with paths.MANIFEST.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] in CLASS_MAP]
    labels = torch.tensor([CLASS_MAP[row["class"]] for row in rows])
    names, digests = tuple(row["name"] for row in rows), tuple(row["sha256"] for row in rows)
    return CellImages(torch.empty((len(rows), 3, 0, 0), dtype=torch.uint8), labels, names, digests, COURSE)


def synthetic_cells(per_class: int = 6, pixels: int = 144, seed: int = 0) -> CellImages:
    """`per_class` drawn cells of each class, uint8 (8 * per_class, 3, pixels, pixels)."""
    rng = np.random.default_rng(seed)
    images, labels, names = [], [], []
    for cell in CELL_TYPES:
        for k in range(per_class):
            picture = synthetic.draw(cell, rng).resize((pixels, pixels))
            images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
            labels.append(cell.id)
            names.append(f"{next(iter(cell.prefixes))}_{k}.jpg")
    return CellImages(torch.stack(images), torch.tensor(labels), tuple(names), ("",) * len(names), SYNTHETIC)


def _lighter(colour: str, share: float) -> tuple[float, ...]:
    return tuple(1 - (1 - c) * (1 - min(share, 0.8)) for c in to_rgb(colour))
