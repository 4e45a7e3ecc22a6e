"""Drawn cells: the same for a seed, of every class, learnable but not by colour alone, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, label
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from bloodcell_lib import synthetic
from bloodcell_lib.cells import CELL_TYPES, CLASS_MAP, NAMES, prefix
from bloodcell_lib.errors import BloodcellError


def pixels(name: str, seed: int, **options: str) -> np.ndarray:
    return np.asarray(synthetic.draw(name, np.random.default_rng(seed), **options))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("cell", CELL_TYPES, ids=NAMES)
def test_a_seed_is_a_picture(cell):
    first = synthetic.draw(cell, np.random.default_rng(7))
    assert first.mode == "RGB" and first.size == (360, 363)
    assert np.array_equal(np.asarray(first), pixels(cell.name, 7))
    assert not np.array_equal(np.asarray(first), pixels(cell.name, 8))


@pytest.mark.parametrize("name", NAMES)
def test_the_masks_say_where_the_drawn_cell_is(name):
    image, body, nucleus = synthetic.draw_with_masks(name, np.random.default_rng(7))
    assert np.array_equal(np.asarray(image), pixels(name, 7)), "the masks change the drawing"
    assert body.shape == nucleus.shape == (363, 360) and body.dtype == nucleus.dtype == bool
    assert body[181, 180] and not nucleus[~body].any()
    assert nucleus.any() == (name != "platelet")
    red = np.asarray(image)[..., 0].astype(float)
    ring = binary_dilation(body, iterations=12) & ~binary_dilation(body, iterations=4)
    assert red[body].mean() < red[ring].mean() - 20
    if nucleus.any():
        assert red[nucleus].mean() < red[body & ~nucleus].mean() - 20


def test_the_cell_is_at_the_centre_and_the_field_is_pale():
    for name in NAMES:
        for seed in range(4):
            luminance = pixels(name, seed).mean(2)
            middle = luminance[150:213, 150:210]
            assert middle.min() < 130, (name, seed)
            assert np.percentile(luminance, 80) > 185, (name, seed)


def test_every_class_and_every_finer_type_differ():
    pictures = [pixels(cell.name, 3, prefix=start).tobytes() for cell in CELL_TYPES for start in cell.prefixes]
    # IG and NEUTROPHIL name no form of their own: they are drawn as one of the finer types.
    assert len(set(pictures)) >= len(pictures) - 2


def test_a_segmented_nucleus_falls_into_lobes_and_a_band_does_not():
    def lobes(start: str) -> float:
        counts = []
        for seed in range(12):
            nucleus = pixels("neutrophil", seed, prefix=start)[90:273, 90:270].mean(2) < 115
            counts.append(label(binary_erosion(nucleus, iterations=6))[1])  # threads are thinner than 12 pixels
        return float(np.mean(counts))

    assert lobes("SNE") > lobes("BNE") + 0.5


@pytest.mark.parametrize("unknown", ["Basophil", "", "red cell"])
def test_unknown_type(unknown):
    with pytest.raises(BloodcellError, match="Unknown cell type"):
        synthetic.draw(unknown, np.random.default_rng(0))


def test_prefix_of_another_class():
    with pytest.raises(BloodcellError, match="Unknown file prefix 'BNE' of class ig"):
        synthetic.draw("ig", np.random.default_rng(0), prefix="BNE")


def test_folder_has_the_course_layout(tmp_path):
    folder = synthetic.write(tmp_path / "cells", per_class=4, test=6, seed=5)
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
    folder = synthetic.write(tmp_path / "cells", per_class=1, test=1)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert synthetic.write(folder, per_class=1, test=1) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    folder = synthetic.write(tmp_path / "cells", per_class=1, test=1)
    before = contents(folder)
    for other in ({"per_class": 2, "test": 1}, {"per_class": 1, "test": 1, "seed": 1}):
        with pytest.raises(BloodcellError, match="holds something else"):
            synthetic.write(folder, **other)
    assert contents(folder) == before

    (folder / "test" / "img_0.jpg").unlink()
    with pytest.raises(BloodcellError, match="holds something else"):
        synthetic.write(folder, per_class=1, test=1)

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(BloodcellError, match="holds something else"):
        synthetic.write(mine, per_class=1, test=1)
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
        synthetic.write(tmp_path / "cells", per_class=2, test=0)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_end_with_one_folder(tmp_path, monkeypatch):
    folder, save = tmp_path / "cells", synthetic._save_all

    def overtaken(*arguments):
        monkeypatch.setattr(synthetic, "_save_all", save)
        synthetic.write(folder, per_class=1, test=0)
        save(*arguments)

    monkeypatch.setattr(synthetic, "_save_all", overtaken)
    assert synthetic.write(folder, per_class=1, test=0) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_processes_do_not_change_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "SMALL_JOB", 10)
    alone = synthetic.write(tmp_path / "alone", per_class=4, test=5, seed=2, workers=1)
    pooled = synthetic.write(tmp_path / "pooled", per_class=4, test=5, seed=2, workers=2)
    assert contents(alone) == contents(pooled)


def test_a_script_that_starts_processes_from_its_top_level_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from bloodcell_lib import synthetic\n"
        "synthetic.SMALL_JOB = 0\n"
        f"synthetic.write({str(tmp_path / 'cells')!r}, per_class=1, test=0, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "BloodcellError: A process that drew cells died" in done.stderr
    assert list(tmp_path.iterdir()) == [script]


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"test": -1}, {"seed": -1}, {"workers": 0}])
def test_counts_out_of_range(tmp_path, wrong):
    with pytest.raises(BloodcellError, match="at least 1 a class"):
        synthetic.write(tmp_path / "cells", **{"per_class": 1, "test": 1, **wrong})
    assert list(tmp_path.iterdir()) == []


def statistics(picture: np.ndarray) -> list[float]:
    """Colour, darkness and texture of the middle: what an eye would use first."""
    middle = picture[90:273, 90:270].astype(np.float32)
    luminance = middle.mean(2)
    dark = luminance < 150
    values = [*middle.mean((0, 1)), *middle.std((0, 1)), dark.mean(), (luminance < 95).mean(), *middle[dark].mean(0)]
    for sigma in (1, 2, 4):
        detail = gaussian_filter(luminance, sigma) - gaussian_filter(luminance, 2 * sigma)
        values += [detail.std(), np.abs(detail[dark]).mean()]
    return values


def test_classes_can_be_learnt_but_not_from_mean_colour():
    labels = np.repeat(np.arange(len(NAMES)), 25)
    pictures = [np.asarray(synthetic.draw(NAMES[k], np.random.default_rng((1, i)))) for i, k in enumerate(labels)]

    def accuracy(features: list[list[float]]) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        with threadpool_limits(1):  # threads cost more than they bring on matrices this small
            return float((cross_val_predict(model, np.array(features), labels, cv=5) == labels).mean())

    assert accuracy([statistics(picture) for picture in pictures]) > 0.7  # chance is 0.125
    assert accuracy([picture.mean((0, 1)) for picture in pictures]) < 0.6
    assert accuracy([picture[90:273, 90:270].mean((0, 1)) for picture in pictures]) < 0.8
