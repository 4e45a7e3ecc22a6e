"""Networks that were really trained, if only for a moment, for the tests of what analyses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bloodcell_lib import analysis, experiments, paths, plans, synthetic
from bloodcell_lib.experiments import Task
from bloodcell_lib.plans import Profile

TINY = Profile("demo", pixels=32, crop=200, epochs=2, seeds=(0, 1))


def subject(home: Path, runs: Sequence[tuple[str, int]], per_class: int = 12) -> Iterator[analysis.Subject]:
    """The runs (experiment, seed) on drawn cells of 32 pixels, two epochs each, below `home`; `demo` is then `TINY`."""
    folder = synthetic.write(home / "images", per_class=per_class, test=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plans.PROFILES, "demo", TINY)
        patch.setattr(paths, "CACHE", home / "cache")
        patch.setattr(paths, "RUNS", home / "runs")
        cells = experiments.load_images("demo", folder, progress=False)
        for name, seed in runs:
            experiments.run(Task(name, seed, "demo", home / "runs", progress=False), cells)
        yield analysis.Subject("demo", cells, runs=home / "runs")
