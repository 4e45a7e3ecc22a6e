"""A folder of drawn cells: in the course's layout, the same for a seed, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bloodcell_lib import drawn_folder, synthetic
from bloodcell_lib.cells import CELL_TYPES, CLASS_MAP, NAMES, prefix
from bloodcell_lib.errors import BloodcellError


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_folder_has_the_course_layout(tmp_path):
    folder = drawn_folder.write(tmp_path / "cells", per_class=4, test=6, seed=5)
    assert json.loads((folder / "class_map.json").read_text()) == CLASS_MAP
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(NAMES)
    for cell in CELL_TYPES:
        files = sorted(path.name for path in (folder / "train" / cell.name).iterdir())
        assert len(files) == 4
        assert all(re.fullmatch(r"[A-Z]+_\d{6}\.jpg", file) for file in files)
        assert {prefix(file) for file in files} == set(cell.prefixes)  # no class has more than four
    assert {path.name for path in (folder / "test").iterdir()} == {f"img_{i}.jpg" for i in range(6)}
    with Image.open(folder / "train" / "ig" / "PMY_000003.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (360, 363))
    assert len({*contents(folder).values()}) == len(contents(folder)), "a picture is there twice"


def test_writing_again_leaves_the_folder(tmp_path):
    folder = drawn_folder.write(tmp_path / "cells", per_class=1, test=1)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert drawn_folder.write(folder, per_class=1, test=1) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    folder = drawn_folder.write(tmp_path / "cells", per_class=1, test=1)
    before = contents(folder)
    for other in ({"per_class": 2, "test": 1}, {"per_class": 1, "test": 1, "seed": 1}):
        with pytest.raises(BloodcellError, match="holds something else"):
            drawn_folder.write(folder, **other)
    assert contents(folder) == before

    (folder / "test" / "img_0.jpg").unlink()
    with pytest.raises(BloodcellError, match="holds something else"):
        drawn_folder.write(folder, per_class=1, test=1)

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(BloodcellError, match="holds something else"):
        drawn_folder.write(mine, per_class=1, test=1)
    assert contents(mine).keys() == {"notes.txt"}


def test_nothing_is_left_when_drawing_stops(tmp_path, monkeypatch):
    drawn, whole = [], synthetic.draw

    def stops(*arguments):
        drawn.append(arguments)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(synthetic, "draw", stops)
    with pytest.raises(KeyboardInterrupt):
        drawn_folder.write(tmp_path / "cells", per_class=2, test=0)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_end_with_one_folder(tmp_path, monkeypatch):
    folder, save = tmp_path / "cells", drawn_folder._save_all

    def overtaken(*arguments):
        monkeypatch.setattr(drawn_folder, "_save_all", save)
        drawn_folder.write(folder, per_class=1, test=0)
        save(*arguments)

    monkeypatch.setattr(drawn_folder, "_save_all", overtaken)
    assert drawn_folder.write(folder, per_class=1, test=0) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_processes_do_not_change_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_folder, "SMALL_JOB", 10)
    alone = drawn_folder.write(tmp_path / "alone", per_class=4, test=5, seed=2, workers=1)
    pooled = drawn_folder.write(tmp_path / "pooled", per_class=4, test=5, seed=2, workers=2)
    assert contents(alone) == contents(pooled)


def test_a_script_that_starts_processes_from_its_top_level_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from bloodcell_lib import drawn_folder\n"
        "drawn_folder.SMALL_JOB = 0\n"
        f"drawn_folder.write({str(tmp_path / 'cells')!r}, per_class=1, test=0, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "BloodcellError: A process that drew cells died" in done.stderr
    assert list(tmp_path.iterdir()) == [script]


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"test": -1}, {"seed": -1}, {"workers": 0}])
def test_counts_out_of_range(tmp_path, wrong):
    with pytest.raises(BloodcellError, match="at least 1 a class"):
        drawn_folder.write(tmp_path / "cells", **{"per_class": 1, "test": 1, **wrong})
    assert list(tmp_path.iterdir()) == []
