"""What a newcomer does: `bloodcell run` on a machine without images, once, and then a look at all that it left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from bloodcell_lib import analyses, notebooks, paths
from bloodcell_lib.figures import ANALYSED
from bloodcell_lib.plans import STUDY

NAMES = tuple(path.stem for path in notebooks.available().values())
STAMP_COLOUR = (0x99, 0x33, 0x22)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`bloodcell run` on a machine without images: the folder of the profile, and what was printed."""
    folder = tmp_path_factory.mktemp("end_to_end")
    places = {f"BLOODCELL_{what.upper()}": str(folder / what) for what in ("runs", "cache", "raw")}
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("BLOODCELL_")}, **places}
    command = [str(Path(sys.executable).with_name("bloodcell")), "run"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "runs" / "demo", done.stdout


def record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


def printed(path: Path) -> str:
    """All text that an executed notebook shows below its cells."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text", ""))
            found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(found)


def test_all_five_are_executed(demo):
    home, said = demo
    rows = re.findall(r"^(\d\d_\w+)\s+(\w+)\s+\d+ s\s+([\d.]+) GiB$", said, re.M)
    assert [name for name, _, _ in rows] == list(NAMES)
    assert {state for _, state, _ in rows} == {"done"}
    assert max(float(peak) for _, _, peak in rows) < 4, "GiB, on the smallest machine that this is meant for"
    for name in NAMES:
        assert notebooks.faults(home / "notebooks" / f"{name}.ipynb") == []
        assert all(file.stat().st_size for file in notebooks.promises(paths.NOTEBOOKS / f"{name}.ipynb", home))


def test_notebooks_on_published_records_are_said_to_lie_where_they_do(demo):
    home, _ = demo
    runs = home.parent
    environment = {**os.environ, "BLOODCELL_RUNS": str(runs), "BLOODCELL_CACHE": str(runs.parent / "cache")}
    environment.pop("BLOODCELL_DATA", None)
    command = [str(Path(sys.executable).with_name("bloodcell")), "run", "--only", "05", "--set", "results=published"]
    done = subprocess.run(command, cwd=runs, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert f"notebooks: {runs / 'published' / 'notebooks'}\n" in done.stdout and str(home) not in done.stdout
    assert notebooks.faults(runs / "published" / "notebooks" / "05_figures.ipynb") == []


def test_every_experiment_has_its_record(demo):
    home, _ = demo
    main = record(home / "main" / "seed0")
    assert (main["profile"], main["data"]["source"], main["data"]["course"]) == ("demo", "synthetic cells", False)
    study = {path.parent.parent.name: record(path.parent) for path in (home / "study").glob("*/seed0/record.json")}
    assert set(study) == set(STUDY)
    assert {info["profile"] for info in study.values()} == {"demo/study"}
    assert len({info["data"]["fingerprint"] for info in study.values()}) == 1
    sides = {name: info["data"]["split_sha256"] for name, info in study.items() if name != "final"}
    assert len(set(sides.values())) == 1, "a comparison needs the same split"
    assert not list((home / ".checkpoints").glob("*.pt"))


def test_the_network_learnt(demo):
    home, _ = demo
    main = record(home / "main" / "seed0")
    assert main["history"][-1]["train_loss"] < main["history"][0]["train_loss"]
    assert main["final_validation_accuracy"] > 2 / 8, "twice what guessing gives"


def test_what_is_told_is_what_was_recorded(demo):
    home, said = demo
    accuracy = f"{record(home / 'main' / 'seed0')['final_validation_accuracy']:.2%}"
    assert accuracy in said
    for name in ("02_training", "04_evaluation", "05_figures"):
        assert accuracy in printed(home / "notebooks" / f"{name}.ipynb"), name
    table = printed(home / "notebooks" / "03_ablations.ipynb")
    assert all(f"{name}" in table for name in STUDY)


def test_every_analysis_is_made_and_told(demo):
    home, _ = demo
    assert {path.stem for path in (home / "analyses").iterdir()} == set(analyses.NAMES)
    for name in ("04_evaluation", "05_figures"):
        told = printed(home / "notebooks" / f"{name}.ipynb")
        assert "calibration error" in told and "mean AUROC" in told and "labels are suspected" in told
        assert "Not recorded yet" not in told and "Warning" not in told


def test_every_figure_of_a_demo_says_so(demo):
    home, _ = demo
    figures = sorted((home / "figures").glob("*.png"))
    assert len(figures) >= 12 + len(ANALYSED)
    unstamped = set()
    for path in figures:
        assert path.with_suffix(".pdf").exists()
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        corner = pixels[-40:, -300:]
        if not (np.abs(corner - STAMP_COLOUR).max(axis=2) < 12).any():
            unstamped.add(path.stem)
    assert not unstamped
