"""One run and its record: the training, and what is kept of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors.torch

from bloodcell_lib import abroad, earlier, machine, models, paths, reader
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError, OtherRun
from bloodcell_lib.plans import EXPERIMENTS, profile
from bloodcell_lib.records import FORMAT, WEIGHTS, Record, in_half, load_record
from bloodcell_lib.tasks import WHOLE, Task, configuration, recorded
from bloodcell_lib.trainer import Run, Trainer
from bloodcell_lib.views import divide, load_images, split_sha256


def whole(task: Task, folder: Path, skip_bad: bool = False, progress: bool = False) -> CellImages | None:
    """The labelled images as whole photographs, where the recipe makes copies from these; else None."""
    if not task.plan().train.copies:
        return None
    return load_images(task.profile, folder, skip_bad, progress, WHOLE)


def run(task: Task, cells: CellImages, photographs: Callable[[], CellImages | None] = lambda: None) -> Record:
    """Trains as `task` says and writes its record; a run that is recorded is read, not repeated.

    photographs: gives the same images as `whole`; called where a recipe copies them and is to be made. Raises
    BloodcellError as `Trainer.fit` does, or if the record there was made with another configuration or on other images;
    a demo's record makes way instead, once there is another.
    """
    config = configuration(task)
    if cells.images.shape[-1] != config["pixels"]:
        raise BloodcellError(
            f"{task.name} wants {config['pixels']} pixels, not {cells.images.shape[-1]}: load them by its view."
        )
    found = standing(task, cells)
    if found is None:
        with one_at_a_time(task):  # and looked for again: another process may have just made it
            found = standing(task, cells) or _make(task, config, cells, photographs)
    return found


def standing(task: Task, cells: CellImages) -> Record | None:
    """The record of `task`, or None. One of another configuration or of other images counts as none in a demo; else it
    raises as in `run`."""
    try:
        return recorded(task, configuration(task), cells)
    except OtherRun:
        if not profile(task.profile).disposable:
            raise
        return None


def _make(
    task: Task, config: dict[str, Any], cells: CellImages, photographs: Callable[[], CellImages | None]
) -> Record:
    """Trains and writes the record."""
    started, commit, plan = machine.now(), machine.commit(), task.plan()
    without = earlier.suspected(task, cells) if plan.part.startswith("clean") else ()
    train, held_out = divide(cells, plan.part, without)
    split = split_sha256(train, held_out)
    taught = earlier.teachers(task, cells) if plan.train.distil else None
    start = earlier.begun(task, cells, split) if plan.train.after else None
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
    copies = plan.train.copies
    shown = _with_copies(task, cells, train, photographs(), without, str(trainer.device)) if copies else train
    try:
        result = trainer.fit(shown, held_out, taught, start)
    except OtherRun:
        if not profile(task.profile).disposable:
            raise
        task.checkpoint.unlink()
        result = trainer.fit(shown, held_out, taught, start)
    data = {
        "source": cells.source,
        "fingerprint": cells.fingerprint,
        "course": cells.is_course,
        "train": len(train),
        "validation": 0 if held_out is None else len(held_out),
        "left_out": len(without),
        **({"taught_sha256": hashlib.sha256(taught.numpy().tobytes()).hexdigest()} if taught is not None else {}),
        **({"start_sha256": trainer.start} if start is not None else {}),
        "split_sha256": split,
    }
    model = {
        "parameters": models.parameters(trainer.model),
        "macs": models.macs(trainer.model, config["pixels"]),
    }
    info = {**_named(task, config), "data": data, "model": model, **_reached(result)}
    _write(task, {**info, "commit": commit, "started": started, "ended": machine.now()}, held_out, result)
    task.checkpoint.unlink(missing_ok=True)
    return load_record(task.folder)


def _with_copies(
    task: Task, cells: CellImages, train: CellImages, given: CellImages | None, without: Collection[int], device: str
) -> CellImages:
    """The training images and their copies from other sites, as a reader that saw no other image gives them back."""
    plan = task.plan()
    if given is None or given.sha256 != cells.sha256:
        raise BloodcellError(f"{task.name} copies whole photographs: give those of its images.")
    theirs = divide(given, plan.part, without)[0]
    if theirs.sha256 != train.sha256:  # pictures may be alike in what a run sees of them, and not as a whole
        raise BloodcellError(f"{task.name} cannot divide these photographs as its images: leave one of each pair out.")
    eye = reader.Lesson(task.profile, plan.part, theirs, device, task.results).taught()
    return abroad.with_copies(train, theirs, eye, configuration(task)["crop"], plan.train.copies, task.seed)


def _named(task: Task, config: dict[str, Any]) -> dict[str, Any]:
    """What a record says of the run before it is made."""
    plan = task.plan()
    return {
        "format": FORMAT,
        "experiment": task.name,
        "title": plan.title,
        "group": plan.group,
        "order": list(EXPERIMENTS).index(plan.name),
        "seed": task.seed,
        "profile": task.profile,
        "config": config,
    }


def _reached(result: Run) -> dict[str, Any]:
    """What a record says of the training; "best" is None without validation."""
    history = result.history
    judged = [row for row in history if row["validation_accuracy"] is not None]
    best = max(judged, key=lambda row: row["validation_accuracy"], default={})
    return {
        "history": history,
        "final_validation_accuracy": history[-1]["validation_accuracy"],
        "best_validation_accuracy": best.get("validation_accuracy"),
        "best_epoch": best.get("epoch"),
        "peak_memory_bytes": result.peak_memory_bytes,
        "wall_seconds": result.wall_seconds,
        "machine": result.machine,
    }


def _write(task: Task, info: dict[str, Any], held_out: CellImages | None, result: Run) -> None:
    """The record's folder, whole or not at all: probabilities on the held-out images, weights, and `info`."""
    with paths.write_folder_whole(task.folder, replace=profile(task.profile).disposable) as folder:
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
