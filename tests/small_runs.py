"""Networks that were really trained, if only for a moment, for the tests of what analyses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bloodcell_lib import analysis, drawn_folder, experiments, paths, plans, views
from bloodcell_lib.plans import Profile
from bloodcell_lib.tasks import Task

TINY = Profile("demo", pixels=32, crop=200, epochs=2, seeds=(0, 1))
FOLDS = [(f"cv_fold{k}", 0) for k in range(5)]


@contextmanager
def trained(
    home: Path, runs: Sequence[tuple[str, int]], per_class: int = 12, pixels: int = 32
) -> Iterator[analysis.Subject]:
    """The runs (experiment, seed) on drawn cells, two epochs each, below `home`; meanwhile `demo` is `TINY`, and the
    images are what BLOODCELL_DATA names."""
    folder = drawn_folder.write(home / "images", per_class=per_class, test=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plans.PROFILES, "demo", replace(TINY, pixels=pixels))
        patch.setattr(paths, "CACHE", home / "cache")
        patch.setattr(paths, "RUNS", home / "runs")
        patch.setenv("BLOODCELL_DATA", str(folder))
        cells = views.load_images("demo", folder, progress=False)
        for name, seed in runs:
            experiments.run(Task(name, seed, "demo", home / "runs", progress=False, device="cpu"), cells)
        yield analysis.Subject("demo", cells, runs=home / "runs", folder=folder)
