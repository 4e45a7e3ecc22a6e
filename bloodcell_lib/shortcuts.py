"""Does a network know the cells, or something beside them? Its accuracy where one of the two is painted over.

A network that knows cells keeps its accuracy on the cell alone and falls to chance on the background alone; one that
learnt a shortcut (Geirhos et al. 2020) does the reverse. Painting leaves edges and outlines that training never
showed, so each question has a control: the same painting with the mask turned and moved off the cell. Shuffled pixels
have none: no training image holds such noise, and what they cost is no sign by itself that the background was used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bloodcell_lib import compare, plans, segment
from bloodcell_lib.analysis import Subject, logits, sample
from bloodcell_lib.cells import TITLES
from bloodcell_lib.data import CellImages
from bloodcell_lib.evaluate import image_index, wilson
from bloodcell_lib.painting import blend, inpaint, median_colour, move, shuffled, wider

DEMO_IMAGES = 96  # that each network of a demo judges; elsewhere all that it was not trained on
COVERED = 0.95  # share of the cells that the one disc of `background_disc` hides whole

# What each condition shows, in the order of the figure.
CONDITIONS = {
    "untouched": "untouched",
    "cell_alone": "cell alone, on its background's median colour",
    "cell_noise": "cell alone, on its background's pixels shuffled",
    "cell_moved": "control: the same, mask moved off the cell",
    "swapped_same": "control: on a background of its own class",
    "swapped_other": "on a background of another class",
    "outline": "outline alone, one colour for every cell",
    "background_alone": "background alone, the cell inpainted",
    "background_disc": "background alone, under one disc for all",
    "background_moved": "control: inpainted beside the cell",
}


class Shown(NamedTuple):
    """The images of one set under every condition.

    images: uint8 (n, 3, H, W) by condition. index: label and name of each. donors: int (n,), the class whose background
    `swapped_other` gave it. held: mean share of the cells that the moved masks still hold.
    """

    images: dict[str, Tensor]
    index: pd.MultiIndex
    donors: np.ndarray
    held: float


def analyse(subject: Subject) -> dict[str, Any]:
    """Accuracy under each condition with Wilson's interval, and its paired difference to the untouched images.

    Judged are images that no network judging them was trained on: all labelled ones by the five folds, or else the
    validation images by every seed; of a demo's some.
    """
    judges = subject.judges()
    limit = DEMO_IMAGES if plans.profile(subject.profile).disposable else None
    said: dict[str, dict[int, list[pd.Series]]] = {name: {} for name in (*CONDITIONS, "donors")}
    seen, shown, held = None, None, []
    for record, held_out in judges:
        if shown is None or held_out.names != seen:  # seeds share one set, folds have their own
            seen, shown = held_out.names, paint(held_out.subset(sample(held_out.labels.numpy(), limit)))
            held.append(shown.held)
        network = subject.network(record)
        columns = {name: logits(network, images).argmax(1).numpy() for name, images in shown.images.items()}
        for name, column in (columns | {"donors": shown.donors}).items():
            said[name].setdefault(record.seed, []).append(pd.Series(column, index=shown.index))
    frames = {
        name: pd.concat({seed: pd.concat(parts) for seed, parts in by_seed.items()}, axis=1)
        for name, by_seed in said.items()
    }
    return {
        "runs": [f"{record.experiment}/seed{record.seed}" for record, _ in judges],
        "images": len(frames["untouched"]),
        "limit": limit,
        "held_by_moved_mask": float(np.mean(held)),
        "conditions": {name: judged(frames[name], frames["untouched"]) for name in CONDITIONS},
        "other_less_same": _points(frames["swapped_other"], frames["swapped_same"]),
        "background_followed": followed(frames["swapped_other"], frames["donors"]),
    }


def followed(predicted: pd.DataFrame, donors: pd.DataFrame) -> dict[str, Any]:
    """How many of the cells that are wrong on another class's background get that class; int (n, seeds) each.

    share, with Wilson's low and high, is to be held against one in seven, which a network gives that errs whatever the
    background. None where nothing is wrong.
    """
    wrong = predicted.to_numpy() != predicted.index.get_level_values("label").to_numpy()[:, None]
    hits, n = int((wrong & (predicted.to_numpy() == donors.to_numpy())).sum()), int(wrong.sum())
    low, high = wilson(hits, n) if n else (None, None)
    return {"wrong": n, "followed": hits, "share": hits / n if n else None, "low": low, "high": high}


def judged(frame: pd.DataFrame, untouched: pd.DataFrame) -> dict[str, Any]:
    """Accuracy of predictions, int (n, seeds), indexed by label and name, and its difference to those on `untouched`.

    accuracy (mean over seeds) with low and high, Wilson's interval for the images of one seed; seeds, one by one;
    recall of each class; difference with its interval, in points, by the bootstrap over seeds and images, and p of the
    exact McNemar test.
    """
    labels = frame.index.get_level_values("label").to_numpy()
    right = frame.to_numpy() == labels[:, None]
    low, high = wilson(right.mean() * len(right), len(right))
    return {
        "accuracy": right.mean(),
        "low": low,
        "high": high,
        "seeds": right.mean(0),
        "recall": [right[labels == k].mean() if (labels == k).any() else None for k in range(len(TITLES))],
        "difference": _points(frame, untouched),
    }


def paint(cells: CellImages, seed: int = 0) -> Shown:
    """Paints over the cell, or all but the cell, in each of the ways that CONDITIONS names."""
    images, labels = cells.images.contiguous(), cells.labels.numpy()
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    cell = segment.segment(images).cell
    hidden = wider(cell)
    moved = move(cell, generator)
    beside = wider(moved) & ~hidden
    light = median_colour(images, ~hidden)
    one_light, one_tint = light.mean(0, keepdim=True), median_colour(images, cell).mean(0, keepdim=True)
    disc = covering_disc(cell) | hidden
    empty = inpaint(images, hidden)
    same, other = donors(labels, rng, same=True), donors(labels, rng, same=False)
    shown = {
        "untouched": images,
        "cell_alone": blend(images, light, cell),
        "cell_noise": blend(images, shuffled(images, ~hidden, generator), cell),
        "cell_moved": blend(images, light, moved),
        "swapped_same": blend(images, empty[same], cell),
        "swapped_other": blend(images, empty[other], cell),
        "outline": blend(one_tint, one_light, cell),
        "background_alone": empty,
        "background_disc": blend(light, images, disc),
        "background_moved": blend(inpaint(images, beside | hidden), images, beside),
    }
    held = (moved & cell).sum() / cell.sum().clamp_min(1)
    return Shown(shown, image_index(labels, cells.names), labels[other], float(held))


def covering_disc(cell: Tensor) -> Tensor:
    """One disc at the centre for all images, bool (1, H, W), that hides COVERED of the cells (n, H, W) whole."""
    h, w = cell.shape[-2:]
    far = torch.hypot((torch.arange(h) - (h - 1) / 2)[:, None], torch.arange(w) - (w - 1) / 2)
    radius = (far * cell).amax((1, 2)).quantile(COVERED)
    return (far <= radius)[None]


def donors(labels: np.ndarray, rng: np.random.Generator, same: bool) -> np.ndarray:
    """For each image another one at random, int (n,), of its own class or of another; itself where there is none."""
    fits = (labels[:, None] == labels) == same
    np.fill_diagonal(fits, False)
    chosen = np.where(fits, rng.random(fits.shape), -1).argmax(1)
    return np.where(fits.any(1), chosen, np.arange(len(labels)))


def _points(ours: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, float]:
    change = compare.difference(ours, theirs)
    return {"points": change.mean, "low": change.low, "high": change.high, "p": change.p}
