"""One run and its record: the images that it sees, the training, and what is kept of it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from bloodcell_lib import abroad, data, drawn_folder, machine, microscope, models, noise, paths, reader
from bloodcell_lib.augment import AugmentConfig
from bloodcell_lib.cells import CLASS_MAP
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError, OtherRun
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.plans import EXPERIMENTS, FOLDS, WITHOUT, Experiment, experiment, profile
from bloodcell_lib.recipe import TrainConfig
from bloodcell_lib.records import FORMAT, WEIGHTS, Record, in_half, load_record
from bloodcell_lib.trainer import Trainer


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


def judged(task: Task, cells: CellImages, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What networks that saw neither fold k nor the image itself say of every image outside of fold k.

    Indices int64 (n,), and probabilities float (n, 8): of fold j, those of `cv_pair<jk>` with this seed, changed by
    hand as this run is. Raises BloodcellError where one of the four is not recorded, or was made with another
    configuration or on other images.
    """
    folds = data.folds(cells)
    changes = tuple((key, value) for key, value in task.changes if key != "distil")  # nobody taught the teachers
    at, probabilities = [], []
    for j in sorted(set(range(5)) - {k}):
        pair = replace(task, experiment=f"cv_pair{min(j, k)}{max(j, k)}", changes=changes)
        record = recorded(pair, configuration(pair), cells)
        if record is None:
            raise BloodcellError(
                f"{task.name} needs {pair.folder}: make it with `bloodcell study --experiments cv_pair --profile "
                f"{task.profile.split('/')[0]}` first" + (", changed in the same way." if changes else ".")
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


def begun(task: Task, cells: CellImages) -> dict[str, Tensor]:
    """The weights that a run starts from whose recipe goes on after another: of the run of that one which had the same
    training images and seed. Raises BloodcellError where there is none, or its weights are damaged or not here."""
    plan = task.plan()
    rows = (*FOLDS.get(plan.train.after, ()), f"{plan.train.after}_final")
    name = next((row for row in rows if row in EXPERIMENTS and EXPERIMENTS[row].part == plan.part), None)
    if name is None:
        raise BloodcellError(
            f"{task.name} goes on after '{plan.train.after}', which has no run on '{plan.part}': give one of "
            f"{', '.join(FOLDS)}, on a part that it has."
        )
    earlier = replace(task, experiment=name, changes=tuple(c for c in task.changes if c[0] != "after"))
    record = recorded(earlier, configuration(earlier), cells)
    if record is None:
        raise BloodcellError(
            f"{task.name} needs {earlier.folder}: make it with `bloodcell train {name} --profile "
            f"{task.profile.split('/')[0]} --seed {task.seed}` first."
        )
    return record.weights()


def whole(task: Task, folder: Path, skip_bad: bool = False, progress: bool = False) -> CellImages | None:
    """The labelled images as whole photographs, where the recipe makes copies from these; else None."""
    if not task.plan().train.copies:
        return None
    return load_images(task.profile, folder, skip_bad, progress, (microscope.SIDE, None))


def run(task: Task, cells: CellImages, photographs: CellImages | None = None) -> Record:
    """Trains as `task` says and writes its record; a run that is recorded is read, not repeated.

    photographs: the same images as `whole` gives them. Raises BloodcellError as `Trainer.fit` does, or if the record
    there was made with another configuration or on other images; a demo's record makes way instead.
    """
    config, budget = configuration(task), profile(task.profile)
    if cells.images.shape[-1] != config["pixels"]:
        raise BloodcellError(
            f"{task.name} wants {config['pixels']} pixels, not {cells.images.shape[-1]}: load them by its view."
        )
    try:
        found = recorded(task, config, cells)
    except OtherRun:
        if not budget.disposable:
            raise
        shutil.rmtree(task.folder)
        found = None
    if found is None:
        with one_at_a_time(task):  # and looked for again: another process may have just made it
            found = recorded(task, config, cells) or _make(task, config, cells, photographs)
    return found


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


def _make(task: Task, config: dict[str, Any], cells: CellImages, photographs: CellImages | None) -> Record:
    """Trains and writes the record."""
    started, commit, plan, budget = now(), machine.commit(), task.plan(), profile(task.profile)
    without = suspected(task, cells) if plan.part.startswith("clean") else ()
    train, held_out = divide(cells, plan.part, without)
    shown = train
    if plan.train.copies:
        if photographs is None:
            raise BloodcellError(f"{task.name} copies whole photographs: give them, or the folder they are in.")
        theirs = divide(photographs, plan.part, without)[0]
        eye = reader.Lesson(task.profile, plan.part, theirs, task.device or "cpu", task.results).taught()
        shown = abroad.with_copies(train, theirs, eye, config["crop"], plan.train.copies, task.seed)
    taught = teachers(task, cells) if plan.train.distil else None
    start = begun(task, cells) if plan.train.after else None
    trainer = Trainer(
        plan.model,
        plan.train,
        plan.augment,
        device=task.device,
        checkpoint=task.checkpoint,
        resume=task.resume,
        progress=task.progress,
        label=f"{task.name} seed {task.seed}",
    )
    try:
        result = trainer.fit(shown, held_out, taught, start)
    except OtherRun:
        if not budget.disposable:
            raise
        task.checkpoint.unlink()
        result = trainer.fit(shown, held_out, taught, start)
    final = result.history[-1]["validation_accuracy"]
    best = None if held_out is None else max(result.history, key=lambda row: row["validation_accuracy"])
    info = {
        "format": FORMAT,
        "experiment": task.name,
        "title": plan.title,
        "group": plan.group,
        "order": list(EXPERIMENTS).index(plan.name),
        "seed": task.seed,
        "profile": task.profile,
        "config": config,
        "data": {
            "source": cells.source,
            "fingerprint": cells.fingerprint,
            "course": cells.is_course,
            "train": len(train),
            "validation": 0 if held_out is None else len(held_out),
            "left_out": len(without),
            **({"taught_sha256": hashlib.sha256(taught.numpy().tobytes()).hexdigest()} if taught is not None else {}),
            **({"start_sha256": trainer.start} if start is not None else {}),
            "split_sha256": split_sha256(train, held_out),
        },
        "model": {
            "parameters": models.parameters(trainer.model),
            "macs": models.macs(trainer.model, config["pixels"]),
        },
        "history": result.history,
        "final_validation_accuracy": final,
        "best_validation_accuracy": best and best["validation_accuracy"],
        "best_epoch": best and best["epoch"],
        "peak_memory_bytes": result.peak_memory_bytes,
        "wall_seconds": result.wall_seconds,
        "machine": result.machine,
        "commit": commit,
        "started": started,
        "ended": now(),
    }
    with paths.write_folder_whole(task.folder) as folder:
        if held_out is not None:
            np.savez_compressed(
                folder / "validation.npz",
                names=np.array(held_out.names),
                labels=held_out.labels.numpy().astype(np.int64),
                probabilities=in_half(result.probabilities.numpy()),
            )
        # As bytes, because a full disk is then the error that it is everywhere else.
        weights = safetensors.torch.save({name: value.contiguous() for name, value in result.weights.items()})
        (folder / WEIGHTS).write_bytes(weights)
        (folder / "record.json").write_text(json.dumps(info, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    task.checkpoint.unlink(missing_ok=True)
    return load_record(task.folder)


@contextlib.contextmanager
def one_at_a_time(task: Task) -> Iterator[None]:
    """Keeps a second process from making the same record; the lock goes with the process, however that ends."""
    lock = filelock.FileLock(task.checkpoint.with_suffix(".lock"))
    try:
        task.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BloodcellError(f"Another process is making {task.folder}: wait for it, or stop it.") from error
    except OSError as error:
        raise BloodcellError(f"Cannot write {task.checkpoint.parent}: {error.strerror or error}.") from error
    try:
        # What a process that was killed while it wrote has left.
        for home, name in ((task.checkpoint.parent, task.checkpoint.name), (task.folder.parent, task.folder.name)):
            for left in home.glob(f".{name}.*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        lock.release()


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


def split_sha256(train: CellImages, held_out: CellImages | None) -> str:
    """A hash of which images were on which side."""
    sides = [sorted(train.sha256), [] if held_out is None else sorted(held_out.sha256)]
    return hashlib.sha256(json.dumps(sides).encode()).hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
