"""The labelled images as the runs of a profile see them: their folder, size and crop, and which side each is on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from bloodcell_lib import data, drawn_folder, paths
from bloodcell_lib.cells import CLASS_MAP
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.plans import WITHOUT, profile


def image_folder(given: Path | None, profile_name: str) -> Path:
    """Where the images are: as given, else `BLOODCELL_DATA` or what was fetched, else, for the demo, drawn cells.

    Raises BloodcellError if there are none and the profile needs real ones.
    """
    folder = Path(os.path.expanduser(given)).absolute() if given else paths.data_folder()
    if folder is not None:
        return folder
    if not profile(profile_name).disposable:
        raise BloodcellError(
            f"Profile {profile_name} needs real images: give --data FOLDER, "
            "or fetch them with `bloodcell data fetch course`."
        )
    return drawn_cells()


def drawn_cells() -> Path:
    """The folder of the demo's cells, which are drawn if they are not there."""
    return drawn_folder.write(paths.RUNS / "demo" / "synthetic", per_class=60, test=40)


def load_images(
    profile_name: str,
    folder: Path,
    skip_bad: bool = False,
    progress: bool = True,
    view: tuple[int, int | None] | None = None,
) -> CellImages:
    """The labelled images as a profile wants them: its size and crop, and no more of each class than it takes.

    view: size and crop in place of the profile's, as `Task.view` gives them.
    """
    budget = profile(profile_name)
    pixels, crop = view or (budget.pixels, budget.crop)
    cells = data.load(folder, pixels, crop, skip_bad=skip_bad, progress=progress)
    if budget.per_class is None:
        return cells
    labels = cells.labels.numpy()
    rng = np.random.default_rng(0)
    kept = [rng.permutation(np.flatnonzero(labels == label))[: budget.per_class] for label in np.unique(labels)]
    return cells.subset(np.sort(np.concatenate(kept)))


def divide(cells: CellImages, part: str, without: Collection[int] = ()) -> tuple[CellImages, CellImages | None]:
    """Training and validation images for an experiment's `part`; training leaves out those at `without`."""
    if part == "all":
        return cells, None
    if part[-1].isdigit():
        folds = data.folds(cells)
        held_out = np.sort(np.concatenate([folds[int(k)][1] for k in part if k.isdigit()]))
        train = np.setdiff1d(np.arange(len(cells)), held_out)
    else:
        train, held_out = data.split(cells)
    if part.startswith(WITHOUT):
        known = cells.labels.numpy() != CLASS_MAP[part.removeprefix(WITHOUT)]
        train, held_out = train[known[train]], held_out[known[held_out]]
    return cells.subset(np.setdiff1d(train, np.asarray(without, dtype=np.int64))), cells.subset(held_out)


def split_sha256(train: CellImages, held_out: CellImages | None) -> str:
    """A hash of which images were on which side."""
    sides = [sorted(train.sha256), [] if held_out is None else sorted(held_out.sha256)]
    return hashlib.sha256(json.dumps(sides).encode()).hexdigest()
