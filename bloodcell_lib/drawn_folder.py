"""A folder of drawn cells in the course's layout: the same bytes for a seed, whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np

from bloodcell_lib import synthetic
from bloodcell_lib.cells import CELL_TYPES, CLASS_MAP, NAMES
from bloodcell_lib.decode import usable_cores
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.paths import DRAWN, write_folder_whole

QUALITY = 92  # of the JPEG files
SMALL_JOB = 96  # pictures that are drawn sooner than a pool of processes has started

Job = tuple[str, str, str | None, tuple[int, ...]]  # file, class, prefix, seed of its generator


def write(folder: Path, per_class: int, test: int, seed: int = 0, workers: int | None = None) -> Path:
    """Draws a folder in the course's layout, whole or not at all, and returns it: JPEG files and class_map.json.

    `train/<class>/<PREFIX>_<6 digits>.jpg`, `per_class` of each class with its prefixes in turn, and
    `test/img_<i>.jpg`, `test` pictures of types drawn by lot. On one machine the bytes depend on `seed` alone,
    not on `workers` (processes; by default one a core). A folder that holds these very pictures is left as it is; what
    it holds is written in its `synthetic.json`. Raises BloodcellError if it holds anything else, or for a count out of
    range.
    """
    folder = Path(folder)
    if per_class < 1 or test < 0 or seed < 0 or (workers is not None and workers < 1):
        raise BloodcellError(
            f"Cannot draw {per_class} cells a class and {test} test cells with seed {seed} and {workers} workers: "
            "give at least 1 a class, 1 worker, and no negative number."
        )
    recipe = {"per_class": per_class, "test": test, "seed": seed, "drawing": synthetic.VERSION}
    jobs = list(_jobs(per_class, test, seed))
    if _holds(folder, recipe, jobs):
        return folder
    try:
        with write_folder_whole(folder) as temporary:
            for name in ("test", *(f"train/{name}" for name in NAMES)):
                (temporary / name).mkdir(parents=True)
            _save_all(temporary, jobs, workers or usable_cores())
            (temporary / "class_map.json").write_text(json.dumps(CLASS_MAP))
            (temporary / DRAWN).write_text(json.dumps(recipe) + "\n")
    except BloodcellError:
        if not _holds(folder, recipe, jobs):  # else another run drew the same meanwhile
            raise
    return folder


def _jobs(per_class: int, test: int, seed: int) -> Iterator[Job]:
    for cell in CELL_TYPES:
        prefixes = tuple(cell.prefixes)
        for i in range(per_class):
            prefix = prefixes[i % len(prefixes)]
            yield f"train/{cell.name}/{prefix}_{i + 1:06d}.jpg", cell.name, prefix, (seed, 0, cell.id, i)
    for i, k in enumerate(np.random.default_rng((seed, 1)).integers(len(NAMES), size=test)):
        yield f"test/img_{i}.jpg", NAMES[k], None, (seed, 2, i)


def _holds(folder: Path, recipe: dict[str, int], jobs: list[Job]) -> bool:
    """Whether `folder` holds just this. Raises BloodcellError if it holds something else; False if it is not there."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        same = json.loads((folder / DRAWN).read_text()) == recipe
    except (OSError, ValueError):
        same = False
    if same and {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")} == {job[0] for job in jobs}:
        return True
    raise BloodcellError(f"{folder} holds something else than these drawn cells: remove it or name another folder.")


def _save_all(folder: Path, jobs: list[Job], workers: int) -> None:
    if workers == 1 or len(jobs) <= SMALL_JOB:
        _save(folder, jobs)
        return
    parts = [jobs[i : i + 25] for i in range(0, len(jobs), 25)]
    # Spawned, not forked: the caller may hold torch's threads.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(parts)), mp_context=context) as pool:
            list(pool.map(partial(_save, folder), parts))
    except BrokenProcessPool as error:
        raise BloodcellError(
            "A process that drew cells died: free some memory, put a script's own code under "
            "`if __name__ == '__main__'`, or draw with workers=1."
        ) from error


def _save(folder: Path, jobs: list[Job]) -> None:
    # glibc then keeps memory of this size for the next array; fresh pages cost a third of the time.
    np.empty(24 << 20, np.uint8)
    for file, name, prefix, seed in jobs:
        synthetic.draw(name, np.random.default_rng(seed), prefix).save(folder / file, quality=QUALITY)
