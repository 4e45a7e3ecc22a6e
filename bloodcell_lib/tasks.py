"""One run that may be made: what decides it, where it goes, and its record if that is there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bloodcell_lib import paths
from bloodcell_lib.augment import AugmentConfig
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError, OtherRun
from bloodcell_lib.microscope import SIDE
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.plans import Experiment, experiment, profile
from bloodcell_lib.recipe import TrainConfig
from bloodcell_lib.records import Record, load_record

WHOLE = (SIDE, None)  # a whole photograph as a view


@dataclass(frozen=True)
class Task:
    """One run to make: an experiment, a seed, a profile, changes to the recipe, and where its record goes.

    changes: (field, value) pairs of TrainConfig; a changed run is recorded under a name that says so.
    """

    experiment: str
    seed: int
    profile: str
    results: Path = paths.RUNS
    changes: tuple[tuple[str, Any], ...] = ()
    device: str | None = None
    resume: bool = True
    progress: bool = True

    @property
    def name(self) -> str:
        """The experiment's name, and after it what was changed: `main+batch_size=64`."""
        return "+".join([self.experiment, *(f"{key}={value}" for key, value in self.changes)])

    @property
    def folder(self) -> Path:
        """Where the record goes."""
        return self.results / self.profile / self.name / f"seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Where the run's last epoch is kept until it has a record."""
        return self.results / self.profile / ".checkpoints" / f"{self.name}-seed{self.seed}.pt"

    @property
    def view(self) -> tuple[int, int | None]:
        """The side of the input, and the side of the crop, None for the whole photograph."""
        return profile(self.profile).view(experiment(self.experiment))

    @property
    def views(self) -> list[tuple[int, int | None]]:
        """All that has to be decoded: `view`, and whole photographs where the recipe copies these."""
        return [self.view, *([WHOLE] if self.plan().train.copies else [])]

    def plan(self) -> Experiment:
        """The experiment with the profile's epochs, this seed and the changes."""
        row, budget = experiment(self.experiment), profile(self.profile)
        epochs = max(1, round(budget.epochs * row.length))
        epochs = min(row.epochs or epochs, epochs)
        train = replace(row.train, epochs=epochs, seed=self.seed)
        try:
            train = replace(train, **dict(self.changes))
        except TypeError as error:
            raise BloodcellError(f"Unknown change to a recipe: {error}.") from error
        train.check()
        return replace(row, train=train)


def configuration(task: Task) -> dict[str, Any]:
    """All that decides what a run gives but for its seed and images, as its record keeps it."""
    plan, (pixels, crop) = task.plan(), task.view
    return {
        "model": asdict(plan.model),
        "train": asdict(plan.train),
        "augment": asdict(plan.augment),
        "pixels": pixels,
        "crop": crop,
        "per_class": profile(task.profile).per_class,
        "part": plan.part,
    }


def recorded(task: Task, config: dict[str, Any], cells: CellImages) -> Record | None:
    """The record, if it is there. Raises BloodcellError if it is of another configuration or other images."""
    if not task.folder.exists():
        return None
    found = load_record(task.folder)
    if complete(found.info["config"]) != complete(config):
        raise OtherRun(f"{task.folder} was recorded with another configuration: move it away to run this one.")
    if found.info["data"]["fingerprint"] != cells.fingerprint:
        raise OtherRun(f"{task.folder} was recorded on other images: move it away to run on these.")
    return found


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration as JSON has it, with the defaults of fields that are newer than its record."""
    parts = {"model": ModelConfig(), "train": TrainConfig(), "augment": AugmentConfig()}
    filled = {name: asdict(default) | config.get(name, {}) for name, default in parts.items()}
    return json.loads(json.dumps(config | filled))
