"""What an audit says of a folder, sound or not; and the list of the course's images."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloodcell_lib import audit, data, drawn_folder, paths
from bloodcell_lib.cells import CELL_TYPES, NAMES, prefix
from bloodcell_lib.errors import BloodcellError

REAL = Path(os.environ.get("BLOODCELL_DATA") or "/nowhere")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cells of each class and three to test."""
    return drawn_folder.write(tmp_path_factory.mktemp("audit") / "drawn", per_class=4, test=3, workers=1)


@pytest.fixture
def cells(drawn: Path, tmp_path: Path) -> Path:
    """A copy of them that is not called drawn."""
    shutil.copytree(drawn, tmp_path / "cells", ignore=shutil.ignore_patterns("synthetic.json"))
    return tmp_path / "cells"


def first(folder: Path, name: str) -> Path:
    return min((folder / "train" / name).iterdir())


def test_a_sound_folder_has_counts_sizes_and_no_duplicates(drawn: Path) -> None:
    found = audit.check(drawn)
    assert found.files.shape == (35, 9) and not len(found.bad)
    assert (found.exact, found.near, found.across) == ([], [], [])
    assert found.source == {"train": data.SYNTHETIC, "test": data.SYNTHETIC}
    row = found.files.set_index("name").loc["train/neutrophil/" + first(drawn, "neutrophil").name]
    assert (row["part"], row["class"], row["prefix"]) == ("train", "neutrophil", prefix(Path(row.name).name))
    assert (row["width"], row["height"], row["mode"]) == (360, 363, "RGB")
    assert row["sha256"] == data.sha256_of(drawn / row.name)
    text = audit.summary(found)
    assert "32 labelled images (synthetic cells), 3 unlabelled (synthetic cells)" in text
    for cell in CELL_TYPES:
        (line,) = [line for line in text.splitlines() if line.startswith(cell.title)]
        assert line.removeprefix(cell.title).split()[0] == "4"
        for key in cell.prefixes:
            count = len(list((drawn / "train" / cell.name).glob(f"{key}_*")))
            assert (f"{key} {count} ({cell.prefixes[key]})" in line) == (count > 0)
    assert "sizes:  360 x 363: 35" in text and "modes:  RGB: 35" in text
    assert text.count(": none") == 4


def test_recompressed_and_resized_copies_are_near_and_only_they(cells: Path) -> None:
    expected = []
    for name in NAMES:
        path = first(cells, name)
        with Image.open(path) as image:
            image.save(path.with_name("Q_60.jpg"), quality=60)
            image.resize((342, 345)).save(path.with_name("R_95.png"))
            image.convert("L").save(path.with_name("S_L.tif"))
        copies = sorted(f"train/{name}/{file}" for file in (path.name, "Q_60.jpg", "R_95.png", "S_L.tif"))
        expected += [(a, b) for a in copies for b in copies if a < b]
    found = audit.check(cells)
    assert sorted((a, b) for a, b, _ in found.near) == sorted(expected)
    assert max(bits for *_, bits in found.near) <= 8 < audit.NEAR
    assert not found.exact and not found.across
    text = audit.summary(found)
    assert "nearly the same picture (at most 24 of 256 bits): 48" in text and "  and 38 more" in text
    assert "modes:  RGB: 51, L: 8" in text and "342 x 345: 8" in text


def test_copies_are_found_across_classes_and_in_the_test_part(cells: Path) -> None:
    ig, platelet = first(cells, "ig"), first(cells, "platelet")
    shutil.copy(ig, cells / "train" / "platelet" / "PLATELET_999999.jpg")
    shutil.copy(ig, cells / "test" / "img_9.jpg")
    with Image.open(platelet) as image:
        image.save(cells / "train" / "basophil" / "BA_999999.jpg", quality=60)
        image.save(cells / "test" / "img_8.jpg", quality=50)
    found = audit.check(cells)
    same = {f"train/ig/{ig.name}", "train/platelet/PLATELET_999999.jpg", "test/img_9.jpg"}
    assert [set(group) for group in found.exact] == [same]
    like = {"train/basophil/BA_999999.jpg", f"train/platelet/{platelet.name}"}
    assert {frozenset(group) for group in found.across} == {frozenset(same), frozenset(like)}
    assert len(found.near) == 3
    assert "one picture in two classes: 2" in audit.summary(found)


def test_a_folder_full_of_problems_is_printed_whole(cells: Path) -> None:
    folder = cells / "train" / "lymphocyte"
    paths_ = sorted(folder.iterdir())
    paths_[0].write_bytes(b"")
    paths_[1].write_bytes(paths_[1].read_bytes()[:3000])
    paths_[2].write_text("text")
    paths_[3].unlink()
    paths_[3].symlink_to("gone")
    os.mkfifo(folder / "LY_pipe.jpg")
    Image.new("CMYK", (50, 40)).save(folder / "LY_cmyk.jpg")
    Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)).save(folder / "noprefix.png")
    Image.new("P", (1, 1)).save(folder / "XX_1.PNG")
    (folder / "b\udcff.jpg").write_bytes(b"")
    found = audit.check(cells)
    assert len(found.bad) == 6 and (found.files["sha256"] == "").sum() == 2
    text = audit.summary(found)
    assert "LY 6 (lymphocyte), 3 with another" in text
    assert "unreadable: 6" in text
    for what in ("(an empty file)", "truncated", "(not an image)", "LY_pipe.jpg", "(no file, or a link to none)"):
        assert what in text, what
    assert "the same file twice: 1" in text, "two empty files"
    assert "CMYK: 1" in text and "I;16: 1" in text and "50 x 40: 2" in text
    assert text.splitlines()[-1].startswith("one picture in two classes")


def test_nothing_readable_is_still_an_audit(cells: Path) -> None:
    shutil.rmtree(cells / "test")
    for path in cells.glob("train/*/*.jpg"):
        path.write_text(path.name)
    found = audit.check(cells)
    text = audit.summary(found)
    assert "32 labelled images (cells)\n" in text and "unreadable: 32" in text and "  and 22 more" in text


def test_a_folder_of_another_layout_is_refused(cells: Path) -> None:
    (cells / "train" / "ig").rename(cells / "train" / "igs")
    with pytest.raises(BloodcellError, match="did you mean 'ig'"):
        audit.check(cells)


def test_pairs_are_found_over_blocks_as_one_by_one() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (40, audit.BITS)).astype(np.float32)
    bits[31, 3:] = bits[4, 3:]
    bits[17] = bits[16]
    bits[39, : audit.NEAR] = 1 - bits[0, : audit.NEAR]
    bits[39, audit.NEAR :] = bits[0, audit.NEAR :]
    bits[38, : audit.NEAR + 1] = 1 - bits[1, : audit.NEAR + 1]
    bits[38, audit.NEAR + 1 :] = bits[1, audit.NEAR + 1 :]
    expected = {(4, 31, int((bits[4] != bits[31]).sum())), (16, 17, 0), (0, 39, audit.NEAR)}
    for block in (1, 7, 40, 2048):
        assert set(audit._close_pairs(bits, block)) == expected


# The list


def test_the_list_makes_these_the_course_images(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "MANIFEST", tmp_path / "new" / "manifest.csv")
    found = audit.check(cells)
    audit.write_manifest(found, paths.MANIFEST)
    rows = list(csv.DictReader(paths.MANIFEST.open(newline="")))
    assert list(rows[0]) == ["part", "name", "class", "prefix", "width", "height", "sha256"]
    assert len(rows) == 35 and {row["class"] for row in rows if row["part"] == "test"} == {""}
    assert b"\r" not in paths.MANIFEST.read_bytes()
    data.manifest.cache_clear()
    try:
        assert audit.check(cells).source == {"train": data.COURSE, "test": data.COURSE}
        assert data.load(cells, pixels=8).is_course and data.load(cells, pixels=8, part="test").is_course
        first(cells, "ig").unlink()
        assert audit.check(cells).source == {"train": "cells", "test": data.COURSE}
    finally:
        data.manifest.cache_clear()


def test_a_list_is_not_overwritten_by_another_nor_made_of_broken_files(cells: Path, tmp_path: Path) -> None:
    target = tmp_path / "manifest.csv"
    audit.write_manifest(audit.check(cells), target)
    audit.write_manifest(audit.check(cells), target)
    before = target.read_bytes()
    first(cells, "ig").unlink()
    with pytest.raises(BloodcellError, match=r"manifest.csv lists other images: remove it first"):
        audit.write_manifest(audit.check(cells), target)
    first(cells, "ig").write_bytes(b"")
    with pytest.raises(BloodcellError, match=r"1 of 34 files cannot be read"):
        audit.write_manifest(audit.check(cells), target)
    assert target.read_bytes() == before


@pytest.mark.skipif(not REAL.is_dir(), reason="BLOODCELL_DATA names no folder")
def test_the_real_pair_is_found(tmp_path: Path) -> None:
    """Sixty images of each class, in two copies: as they are, and resized."""
    with paths.MANIFEST.open(newline="") as file:
        listed = [row for row in csv.DictReader(file) if row["part"] == "train"]
    digests = [row["sha256"] for row in listed]
    twins = [row["name"] for row in listed if digests.count(row["sha256"]) > 1]
    assert len(twins) == 2
    for name in NAMES:
        (tmp_path / "train" / name).mkdir(parents=True)
        paths_ = sorted((REAL / "train" / name).iterdir())
        for path in paths_[:60] + [path for path in paths_[60:] if path.name in twins]:
            (tmp_path / "train" / name / path.name).symlink_to(path)
        with Image.open(paths_[0]) as image:
            image.resize((342, 345)).save(tmp_path / "train" / name / "ZZ_0.jpg", quality=60)
    found = audit.check(tmp_path)
    assert [sorted(Path(path).name for path in group) for group in found.exact] == [sorted(twins)]
    assert len(found.near) == 8 and all("ZZ_0.jpg" in b for _, b, _ in found.near)
    assert not found.across and not len(found.bad)
    assert "IG" in audit.summary(found) and "with another" in audit.summary(found)


def test_the_datasheet_counts_what_the_manifest_lists():
    with paths.MANIFEST.open(encoding="utf-8", newline="") as file:
        listed = Counter((row["class"], row["prefix"]) for row in csv.DictReader(file) if row["part"] == "train")
    sheet = (paths.ROOT / "data" / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \| `(\w+)` \|[^|]*\| (\d+) \|$", sheet, re.M)
    several = {name for name, _ in listed if sum(other == name for other, _ in listed) > 1}
    assert {(name, prefix): int(n) for name, prefix, n in told} == {
        key: n for key, n in listed.items() if key[0] in several
    }
