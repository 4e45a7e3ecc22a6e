"""What a run takes from earlier ones: labels that these suspect, what they teach, weights to start from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bloodcell_lib import data, noise
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError, OtherRun
from bloodcell_lib.plans import EXPERIMENTS, FOLDS, experiment
from bloodcell_lib.tasks import Task, configuration, recorded


def judged(task: Task, cells: CellImages, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What networks that saw neither fold k nor the image itself say of every image outside of fold k.

    Indices int64 (n,), and probabilities float (n, 8): of fold j, those of `cv_pair<jk>` with this seed, changed by
    hand as this run is. Raises BloodcellError where one of the four is not recorded, or was made with another
    configuration or on other images.
    """
    folds = data.folds(cells)
    at, probabilities = [], []
    for j, pair in _pairs(task, k):
        record = recorded(pair, configuration(pair), cells)
        if record is None:
            raise BloodcellError(
                f"{task.name} needs {pair.folder}: make it with `{_command(pair, 'cv_pair')}` first{_alike(pair)}."
            )
        run, held_out = record.validation(), np.sort(np.concatenate([folds[j][1], folds[k][1]]))
        if run.names != cells.subset(held_out).names:
            raise OtherRun(f"{pair.folder} was recorded on other images: move it away to run on these.")
        mine = np.isin(held_out, folds[j][1])
        at.append(held_out[mine])
        probabilities.append(run.probabilities[mine])
    return np.concatenate(at), np.concatenate(probabilities)


def suspected(task: Task, cells: CellImages) -> np.ndarray:
    """Indices of the training images of `cv_clean<k>` whose labels look wrong by `judged`, int64.

    What bias remains: these networks had three folds to learn from in place of four, so they suspect more; and the
    labels of fold k, on which the result is measured, may be wrong too.
    """
    at, probabilities = judged(task, cells, int(task.experiment[-1]))
    return np.sort(at[noise.suspects(cells.labels.numpy()[at], probabilities)])


def teachers(task: Task, cells: CellImages) -> Tensor:
    """What networks that saw neither it nor the validation set say of each training image of the split, float32
    (n, 8) in the order of `divide`. Raises BloodcellError as `judged` does, or for a part that is not the split."""
    if (part := experiment(task.experiment).part) != "split":
        raise BloodcellError(f"{task.name} trains on '{part}': distil on the split, whose teachers are recorded.")
    at, probabilities = judged(task, cells, 0)
    return torch.from_numpy(probabilities[np.argsort(at)]).float()


def begun(task: Task, cells: CellImages, split: str) -> dict[str, Tensor]:
    """The weights that a run starts from whose recipe goes on after another: of the run of that one which had the same
    training images and seed. split: `views.split_sha256` of this one's. Raises BloodcellError where there is none, or
    it had another, or its weights are damaged or not here."""
    plan, earlier = task.plan(), before(task)
    if earlier is None:
        raise BloodcellError(
            f"{task.name} goes on after '{plan.train.after}', which has no run on '{plan.part}': give one of "
            f"{', '.join(FOLDS)}, on a part that it has."
        )
    record = recorded(earlier, configuration(earlier), cells)
    if record is None:
        raise BloodcellError(
            f"{task.name} needs {earlier.folder}: make it with `{_command(earlier)}` first{_alike(earlier)}."
        )
    if record.info["data"]["split_sha256"] != split:
        raise BloodcellError(f"{record.folder} trained on other of these images: move it away and make it again.")
    return record.weights()


def before(task: Task) -> Task | None:
    """The run that this one goes on from; None where that recipe has none on these images."""
    plan = task.plan()
    rows = (*FOLDS.get(plan.train.after, ()), f"{plan.train.after}_final")
    name = next((row for row in rows if row in EXPERIMENTS and EXPERIMENTS[row].part == plan.part), None)
    changes = tuple(change for change in task.changes if change[0] != "after")
    return name and replace(task, experiment=name, changes=changes)


def needed(task: Task) -> list[Task]:
    """The runs that must be recorded before `task` can be made, in whose place nothing else will do."""
    plan = task.plan()
    cleaned = plan.part.startswith("clean")
    first = [before(task)] if plan.train.after else []
    held_out = int(task.experiment[-1]) if cleaned else 0
    pairs = [pair for _, pair in _pairs(task, held_out)] if cleaned or plan.train.distil else []
    return [run for run in (*first, *pairs) if run is not None]


def _pairs(task: Task, k: int) -> list[tuple[int, Task]]:
    """The runs that saw neither fold k nor fold j, by j; nobody taught these."""
    changes = tuple((key, value) for key, value in task.changes if key != "distil")
    others = sorted(set(range(5)) - {k})
    return [(j, replace(task, experiment=f"cv_pair{min(j, k)}{max(j, k)}", changes=changes)) for j in others]


def _command(task: Task, group: str = "") -> str:
    """What makes a run, or a group of them; only a study makes those of a profile within another."""
    outer, _, inner = task.profile.partition("/")
    if group or inner:
        return f"bloodcell study --experiments {group or task.experiment} --profile {outer}"
    return f"bloodcell train {task.experiment} --profile {outer} --seed {task.seed}"


def _alike(task: Task) -> str:
    return ", changed in the same way" if task.changes else ""
