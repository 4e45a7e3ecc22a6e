"""Networks that were really trained, if only for a moment, on drawn cells: for tests of what analyses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloodcell_lib import analysis, experiments, paths, plans, synthetic
from bloodcell_lib.experiments import Task
from bloodcell_lib.plans import Profile


def trained(home: Path, tasks: list[tuple[str, int]], per_class: int = 12) -> analysis.Subject:
    """The runs of `tasks` (experiment, seed), two epochs each on drawn cells of 32 pixels, and the images."""
    folder = synthetic.write(home / "images", per_class=per_class, test=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plans.PROFILES, "demo", Profile("demo", pixels=32, crop=200, epochs=2, seeds=(0,)))
        patch.setattr(paths, "CACHE", home / "cache")
        cells = experiments.load_images("demo", folder, progress=False)
        for name, seed in tasks:
            experiments.run(Task(name, seed, "demo", home / "runs", progress=False, device="cpu"), cells)
    return analysis.Subject("demo", cells, runs=home / "runs")
