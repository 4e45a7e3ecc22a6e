"""All analyses of trained networks: which there are, in which order, and those that a notebook asks for."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bloodcell_lib import analysis, paths, shelf, views
from bloodcell_lib.analysis import Subject
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.records import Record

NAMES = (
    "trust",
    "labels",
    "mistakes",
    "explain",
    "shortcuts",
    "robustness",
    "travel",
    "reading",
    "unknown",
)  # modules with an `analyse`


def make(subject: Subject, names: Iterable[str] = NAMES) -> Iterator[Path]:
    """Makes and records one analysis after the other; gives the file of each. Raises BloodcellError for another name,
    before anything is made."""
    names = list(names)
    for name in names:
        if name not in NAMES:
            raise BloodcellError(f"Unknown analysis '{name}': choose from {', '.join(NAMES)}.")
    for name in names:
        yield analysis.record_analysis(name, subject, importlib.import_module(f"bloodcell_lib.{name}").analyse)


def complete(
    place: shelf.Shelf, experiment: str, device: str, data: str = "", skip_bad: bool = False
) -> dict[str, dict[str, Any]]:
    """The analyses of an experiment on a shelf, by name; those of runs made here that are absent or older are made.

    Nothing is made where the images or the weights of the runs are not at hand; what cannot be made, as of too few
    images, is said in a warning.
    """
    runs, found = place.of(experiment), analysis.of_experiment(analysis.load_analyses(place.runs), experiment)
    absent = [name for name in NAMES if name not in found or not fits(found[name], runs)]
    if not absent or not place.own or not all(run.has_weights for run in runs):
        return found
    cells = shelf.images_of(runs[0], data, skip_bad)
    if cells is None:
        return found
    folder = views.image_folder(Path(data) if data else None, "demo")
    subject = Subject(runs[0].profile, cells, experiment, device, paths.RUNS, folder)
    for name in absent:
        try:
            list(make(subject, [name]))
        except BloodcellError as error:
            warnings.warn(f"The analysis {name} was left out. {error}", stacklevel=2)
    return analysis.of_experiment(analysis.load_analyses(place.runs), experiment)


def fits(content: dict[str, Any], runs: list[Record]) -> bool:
    """Whether an analysis tells of these runs: of their experiment and images, and made after them."""
    return (
        content["experiment"] == runs[0].experiment
        and content["data"]["fingerprint"] == runs[0].info["data"]["fingerprint"]
        and content["started"] >= max(run.info["ended"] for run in runs)
    )
