"""From files to a tensor and its parts, with every kind of file that a folder may hold."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import BAD
from PIL import Image

from bloodcell_lib import data, decode, paths
from bloodcell_lib.cells import CLASS_MAP, NAMES
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError

REAL = Path(os.environ.get("BLOODCELL_DATA") or "/nowhere")
real = pytest.mark.skipif(not REAL.is_dir(), reason="BLOODCELL_DATA names no folder")
fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def course(tmp_path: Path) -> Path:
    return write_course(tmp_path / "course")


def write_course(folder: Path, per_class: int = 5, size: tuple[int, int] = (36, 40)) -> Path:
    """Noise in the course's layout; the red of every picture is 20 times its label, and no two are the same."""
    rng = np.random.default_rng(0)
    for name, label in CLASS_MAP.items():
        (folder / "train" / name).mkdir(parents=True)
        for i in range(per_class):
            image = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            image[..., 0] = 20 * label
            Image.fromarray(image).save(folder / "train" / name / f"X_{i:03d}.jpg", quality=95, subsampling=0)
    (folder / "test").mkdir()
    for i in range(3):
        image = np.full((size[1], size[0], 3), 80 * i, np.uint8)
        Image.fromarray(image).save(folder / "test" / f"img_{i}.jpg", quality=95)
    (folder / "class_map.json").write_text(json.dumps(CLASS_MAP))
    return folder


def caches(cache: Path) -> int:
    return len(list(cache.iterdir()))


def cells_of(images: np.ndarray, labels: list[int]) -> CellImages:
    names = tuple(f"{i}.jpg" for i in range(len(images)))
    tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.uint8))
    return CellImages(tensor, torch.tensor(labels), names, names, "made up")


def in_child(function: Callable[[], object]) -> int:
    """The exit code of a process that calls `function`: 0, 2 for a BloodcellError, printed, 1 for anything else."""

    def run() -> None:
        try:
            function()
        except BloodcellError as error:
            print(error, flush=True)
            os._exit(2)
        os._exit(0)

    child = fork.Process(target=run)
    child.start()
    child.join()
    return child.exitcode


# Loading, and the cache


def test_images_labels_and_names_come_in_order(course: Path) -> None:
    cells = data.load(course, pixels=24)
    assert cells.images.shape == (40, 3, 24, 24) and cells.images.dtype == torch.uint8
    assert cells.labels.dtype == torch.int64
    assert cells.labels.tolist() == [label for label in range(8) for _ in range(5)]
    assert cells.names == tuple(f"X_{i:03d}.jpg" for _ in range(8) for i in range(5))
    red = cells.images[:, 0].float().mean((1, 2))
    torch.testing.assert_close(red, 20.0 * cells.labels, atol=6, rtol=0)
    assert cells.sha256[7] == data.sha256_of(course / "train" / "eosinophil" / "X_002.jpg")
    assert cells.source == "course" and not cells.is_course
    with Image.open(course / "train" / "ig" / "X_004.jpg") as image:
        whole = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(cells.images[19].permute(1, 2, 0).numpy(), whole)


def test_test_images_have_no_labels(course: Path) -> None:
    cells = data.load(course, pixels=8, part="test")
    assert cells.names == ("img_0.jpg", "img_1.jpg", "img_2.jpg") and cells.labels.tolist() == [-1] * 3
    torch.testing.assert_close(cells.images[:, 0, 4, 4].tolist(), [0, 80, 160], atol=2, rtol=0)


def test_a_second_load_decodes_nothing_and_nobody_changes_the_cache(
    course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data.load(course, pixels=24)
    before = first.images.clone()
    first.images.zero_()
    monkeypatch.setattr(decode, "read", lambda *_: pytest.fail("decoded again"))
    second = data.load(course, pixels=24)
    assert torch.equal(second.images, before)
    assert (second.names, second.sha256, second.fingerprint) == (first.names, first.sha256, first.fingerprint)
    course.rename(course.with_name("elsewhere"))
    assert torch.equal(data.load(course.with_name("elsewhere"), pixels=24).images, before)


def test_other_pixels_crop_bytes_names_or_labels_make_another_cache(course: Path, cache: Path) -> None:
    one = course / "train" / "ig" / "X_000.jpg"
    loads = [data.load(course, pixels=24), data.load(course, pixels=16), data.load(course, pixels=24, crop=20)]
    Image.new("RGB", (36, 40), "white").save(one)
    loads.append(data.load(course, pixels=24))
    one.rename(one.with_name("Y_000.jpg"))
    loads.append(data.load(course, pixels=24))
    shutil.move(course / "train" / "ig" / "Y_000.jpg", course / "train" / "platelet")
    loads.append(data.load(course, pixels=24))
    assert caches(cache) == len(loads)
    assert len({cells.fingerprint for cells in loads}) == 4, "pixels and crop are no part of what the images are"
    assert (loads[3].images[15] == 255).all() and not torch.equal(loads[3].images, loads[0].images)
    assert loads[5].labels.tolist().count(7) == 6


@pytest.mark.parametrize("damage", ["no pixels", "few pixels", "no index", "half an index", "nothing"])
def test_a_damaged_cache_is_made_anew(course: Path, cache: Path, damage: str) -> None:
    whole = data.load(course, pixels=24).images.clone()
    (home,) = cache.iterdir()
    match damage:
        case "no pixels":
            (home / "images.bin").unlink()
        case "few pixels":
            (home / "images.bin").write_bytes((home / "images.bin").read_bytes()[:-1])
        case "no index":
            (home / "index.json").unlink()
        case "half an index":
            (home / "index.json").write_text((home / "index.json").read_text()[:99])
        case "nothing":
            shutil.rmtree(home)
            home.mkdir()
    assert torch.equal(data.load(course, pixels=24).images, whole)
    assert list(cache.iterdir()) == [home]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The course's images where they are at hand, else 400 of their size; and a cache for all that reads them."""
    home = tmp_path_factory.mktemp("large")
    return REAL if REAL.is_dir() else write_course(home / "many", 50, (360, 363)), home / "cache"


def test_a_second_load_takes_less_than_a_second(large: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = large
    monkeypatch.setattr(paths, "CACHE", cache)

    def seconds() -> float:
        began = time.perf_counter()
        counts = [len(data.load(folder, 32, 280, part)) for part in ("train", "test")]
        assert counts == ([3200, 1000] if folder == REAL else [400, 3])
        return time.perf_counter() - began

    seconds()
    assert min(seconds() for _ in range(5)) < 1


def test_processes_that_fill_one_cache_at_once_all_get_it(course: Path, cache: Path) -> None:
    start = fork.Event()

    def one() -> None:
        start.wait()
        cells = data.load(course, pixels=24)
        torch.testing.assert_close(cells.images[:, 0].float().mean((1, 2)), 20.0 * cells.labels, atol=6, rtol=0)
        os._exit(7)

    all_of_them = [fork.Process(target=one) for _ in range(4)]
    for process in all_of_them:
        process.start()
    start.set()
    for process in all_of_them:
        process.join()
    assert [process.exitcode for process in all_of_them] == [7] * 4
    assert caches(cache) == 1


def test_a_fill_that_was_killed_is_trusted_by_nobody(
    course: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = decode.read

    def slow(path: Path, crop: int | None) -> Image.Image:
        if path.parent.name == "lymphocyte":
            (tmp_path / "half way").touch()
            time.sleep(60)
        return read(path, crop)

    monkeypatch.setattr(decode, "read", slow)
    child = fork.Process(target=data.load, args=(course, 24))
    child.start()
    while not (tmp_path / "half way").exists():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert not any(path.name[0] != "." for path in cache.iterdir())
    monkeypatch.setattr(decode, "read", read)
    cells = data.load(course, pixels=24)
    torch.testing.assert_close(cells.images[:, 0].float().mean((1, 2)), 20.0 * cells.labels, atol=6, rtol=0)


def test_ctrl_c_stops_decoding_at_once_and_leaves_nothing(
    course: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def slow(path: Path, crop: int | None) -> Image.Image:
        decoded.append(path)
        time.sleep(0.05)
        return Image.new("RGB", (9, 9))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(decode, "read", slow)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            data.load(course, workers=1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(decoded) < 12
    assert caches(cache) == 0


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    course: Path, cache: Path, capfd: pytest.CaptureFixture
) -> None:
    def load() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        data.load(course, pixels=24)

    assert in_child(load) == 2
    assert "Cannot write" in (said := capfd.readouterr().out) and said.count("\n") == 1
    assert caches(cache) == 0


def test_a_cache_folder_that_cannot_be_written_is_one_sentence(capfd: pytest.CaptureFixture) -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others, which the child becomes
    try:
        folder.chmod(0o755)
        write_course(folder / "course", per_class=1)
        (folder / "cache").mkdir(mode=0o555)

        def load() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            paths.CACHE = folder / "cache"
            data.load(folder / "course", pixels=8)

        assert in_child(load) == 2
        assert "Cannot write" in (said := capfd.readouterr().out) and "Permission denied" in said
        assert caches(folder / "cache") == 0
        (folder / "cache").rmdir()
        (folder / "cache").write_text("a file in the way")
        assert in_child(load) == 2
    finally:
        shutil.rmtree(folder)


def test_a_fault_of_the_system_is_told_and_not_kept(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, crop: int | None) -> Image.Image:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(decode, "read", failing)
        with pytest.raises(BloodcellError, match=r"Cannot read .*X_000.jpg: Input/output error"):
            data.load(course, pixels=24, skip_bad=True)
    assert len(data.load(course, pixels=24)) == 40


def test_a_lack_of_memory_is_no_broken_file(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(image: Image.Image) -> Image.Image:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(decode, "to_rgb", failing)
        with pytest.raises(BloodcellError, match=r"Cannot read .*X_000.jpg: the memory does not hold it"):
            data.load(course, pixels=24, skip_bad=True)
    assert len(data.load(course, pixels=24)) == 40


def test_who_fails_where_another_process_has_filled_the_cache_takes_all_of_it(
    course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = decode.read

    def overtaken(path: Path, crop: int | None) -> Image.Image:
        if path.name == "X_003.jpg":
            monkeypatch.setattr(decode, "read", read)
            assert len(data.load(course, pixels=24)) == 40
            raise OSError(errno.EIO, "Input/output error")
        return read(path, crop)

    monkeypatch.setattr(decode, "read", overtaken)
    assert len(data.load(course, pixels=24)) == 40


def test_a_large_subset_lies_in_a_file_that_goes_with_it(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, at = data.load(course, 16, progress=False), [30, 2, 2, *range(40)]
    small = cells.subset(at)
    monkeypatch.setattr(data, "IN_MEMORY", 1000)
    large = cells.subset(at)
    assert torch.equal(large.images, small.images) and large.names == small.names
    if sys.platform == "linux":
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(paths.CACHE) in line]
        assert any(line.endswith("(deleted)") for line in mapped)
    large.images[0] = 0  # nobody else's
    assert torch.equal(cells.images[30], small.images[0]) and torch.equal(cells.subset(at).images, small.images)
    assert [path.name for path in paths.CACHE.iterdir() if path.is_file()] == []


def test_a_subset_that_cannot_be_written_is_told(course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = data.load(course, 16, progress=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "file")
    with pytest.raises(BloodcellError, match=r"Cannot copy 3 images to .*file"):
        cells.subset(range(3))


def test_a_cache_may_be_anywhere(course: Path, tmp_path: Path) -> None:
    cells = data.load(course, 16, cache=tmp_path / "elsewhere", progress=False)
    assert torch.equal(cells.images, data.load(course, 16, progress=False).images)
    assert len(list((tmp_path / "elsewhere").glob("*/images.bin"))) == 1


def test_a_subset_is_a_copy_in_the_order_asked_for(course: Path) -> None:
    cells = data.load(course, pixels=8)
    part = cells.subset([30, 2, 2])
    assert part.labels.tolist() == [6, 0, 0] and part.names == ("X_000.jpg", "X_002.jpg", "X_002.jpg")
    assert torch.equal(part.images[0], cells.images[30]) and len(part) == 3
    part.images.zero_()
    assert cells.images[30].any()
    assert cells.subset(range(39, -1, -1)).fingerprint == cells.fingerprint
    assert cells.subset(range(39)).fingerprint != cells.fingerprint
    assert len(cells.subset([])) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (2000, 3), (360, 363)])
def test_any_shape_is_brought_to_size(course: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(course / "train" / "ig" / "X_000.jpg", quality=95)
    for crop in (None, 20):
        cells = data.load(course, pixels=16, crop=crop)
        torch.testing.assert_close(cells.images[15, :, 8, 8].tolist(), [10, 200, 30], atol=2, rtol=0)


# Files that are no image, or not all of one


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_counted_refused_or_left_out(
    course: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    BAD[kind](course / "train" / "monocyte" / "X_001.jpg")
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(BloodcellError) as told:
            data.load(course, pixels=16)
        assert "1 of 40 files" in str(told.value) and "X_001.jpg (" in str(told.value)
        assert "--skip-bad" in str(told.value) and "\n" not in str(told.value)
        cells = data.load(course, pixels=16, skip_bad=True)
        assert len(cells) == 39 and cells.labels.tolist().count(5) == 4
        torch.testing.assert_close(cells.images[:, 0].float().mean((1, 2)), 20.0 * cells.labels, atol=6, rtol=0)
        assert "Left out: 1 of 40" in capsys.readouterr().out


def test_many_bad_files_are_counted_and_the_first_named(course: Path) -> None:
    for i in range(5):
        (course / "train" / "ig" / f"Z_{i}.jpg").write_bytes(b"")
    with pytest.raises(
        BloodcellError, match=r"5 of 45 files .*Z_0.jpg \(an empty file\); Z_1.jpg.*Z_2.jpg.* and 2 more"
    ):
        data.load(course, pixels=16)
    assert len(data.load(course, pixels=16, skip_bad=True)) == 40


def test_no_class_may_lose_all_its_images(course: Path) -> None:
    for path in (course / "train" / "platelet").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BloodcellError, match=r"No image in .*platelet can be read"):
        data.load(course, pixels=16, skip_bad=True)
    for path in course.glob("t*/**/*.jpg"):
        path.write_bytes(b"")
    for part, count in (("train", 40), ("test", 3)):
        for skip_bad in (True, False):
            with pytest.raises(BloodcellError, match=f"{count} of {count} files .* cannot be read"):
                data.load(course, pixels=16, part=part, skip_bad=skip_bad)


# Names, and what else lies in folders


def test_odd_names_are_found_and_other_things_passed_over(course: Path) -> None:
    folder = course / "train" / "ig"
    odd = [
        "A B (copy).jpg",
        "\u00e9rythroblaste \u7d30\u80de.jpg",
        "UPPER.JPG",
        "b.JpEg",
        "line\nend.png",
        "'$(x)'.tif",
        "d\udcff.jpg",
    ]
    for name in odd:
        Image.new("RGB", (9, 9), (60, 0, 0)).save(folder / name, {"png": "PNG", "tif": "TIFF"}.get(name[-3:], "JPEG"))
    for name in (".hidden.jpg", "._X_000.jpg", "Thumbs.db", "notes.txt", "X_000.jpg.part", "X"):
        (folder / name).write_text("no image")
    (folder / "a folder.jpg").mkdir()
    cells = data.load(course, pixels=16)
    assert set(cells.names[15:27]) == {*odd, *(f"X_{i:03d}.jpg" for i in range(5))}
    assert list(cells.names[15:27]) == sorted(cells.names[15:27]) and len(cells) == 47
    assert data.load(course, pixels=16).names == cells.names
    assert len(cells.fingerprint) == 64


@pytest.mark.parametrize("kind", ["broken link", "link to itself", "pipe"])
def test_what_is_no_file_is_named_or_left_out_and_nobody_waits_for_it(course: Path, kind: str) -> None:
    path = course / "train" / "ig" / "odd.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("odd.jpg" if kind == "link to itself" else "gone.jpg")
    with pytest.raises(BloodcellError, match=r"1 of 41 files .* odd.jpg \(no file, or a link to none\)"):
        data.load(course, pixels=16)
    assert len(data.load(course, pixels=16, skip_bad=True)) == 40
    for other in (course / "train" / "ig").glob("X_*.jpg"):
        other.unlink()
    with pytest.raises(BloodcellError, match=r"No image in .*ig can be read"):
        data.load(course, pixels=16, skip_bad=True)


def test_links_are_followed(course: Path, tmp_path: Path) -> None:
    shutil.move(course / "train" / "ig", tmp_path / "ig")
    (course / "train" / "ig").symlink_to(tmp_path / "ig")
    shutil.move(tmp_path / "ig" / "X_000.jpg", tmp_path / "far.jpg")
    (tmp_path / "ig" / "X_000.jpg").symlink_to(tmp_path / "far.jpg")
    assert len(data.load(course, pixels=16)) == 40


def test_folders_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    def refused(match: str, part: str = "train") -> None:
        with pytest.raises(BloodcellError, match=match) as told:
            data.load(tmp_path / "course", part=part)
        assert str(told.value).endswith((".", "?")) and "\n" not in str(told.value)

    refused("No folder .*course: give the folder")
    (tmp_path / "course").write_text("a file")
    refused("No folder .*course: give the folder")
    (tmp_path / "course").unlink()
    (tmp_path / "course").mkdir()
    refused("No folder .*train: the images belong")
    refused("No folder .*test: the images belong", "test")
    (tmp_path / "course" / "train").mkdir()
    refused("No folder .*basophil: each of the eight")
    shutil.rmtree(tmp_path / "course")
    train = write_course(tmp_path / "course", per_class=1) / "train"
    (train / "neutrophil").rename(train / "neutrophils")
    refused("neutrophils is not one of the eight classes: did you mean 'neutrophil'?")
    (train / "neutrophils").rename(train / "Neutrophil")
    refused("Neutrophil is not .* did you mean 'neutrophil'?")
    (train / "Neutrophil").rename(train / "neutrophil")
    (train / "unknown").mkdir()
    refused("unknown is not one of the eight classes: the classes are basophil, .*, platelet")
    (train / "unknown").rmdir()
    (train / ".ipynb_checkpoints").mkdir()
    assert len(data.load(tmp_path / "course", pixels=8)) == 8
    (train / "ig" / "X_000.jpg").unlink()
    refused("No images in .*ig: every one")
    (train / "ig").rmdir()
    refused("No folder .*ig: each of")
    (train / "ig").write_text("a file")
    refused("No folder .*ig: each of")
    for path in (tmp_path / "course" / "test").iterdir():
        path.unlink()
    refused("No images in .*test: put", "test")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not a table"),
        ("[0, 1, 2]", "not a table"),
        ("3", "not a table"),
        ("", "not a table"),
        ("[" * 100_000, "not a table"),
        ('{"basophil": Infinity}', "differs from the course's at 'basophil'"),
        ('{"basophil": "0"}', "differs from the course's at 'basophil'"),
        ('{"basophil": [0]}', "differs from the course's at 'basophil'"),
        ("{}", "lacks 'basophil'"),
        (json.dumps({**CLASS_MAP, "ig": 4}), "gives id 4 to more than one class"),
        (json.dumps({**CLASS_MAP, "ig": 4, "lymphocyte": 3}), "differs from the course's at 'ig'"),
        (json.dumps({**CLASS_MAP, "other": 8}), "differs from the course's at 'other'"),
        (json.dumps({name: i for name, i in CLASS_MAP.items() if i < 7}), "lacks 'platelet'"),
        (json.dumps({name: i + 1 for name, i in CLASS_MAP.items()}), "differs from the course's at 'basophil'"),
    ],
)
def test_a_changed_class_map_is_refused(course: Path, text: str, match: str) -> None:
    (course / "class_map.json").write_text(text)
    with pytest.raises(BloodcellError, match=f"class_map.json .*{match}.*restore the course's file"):
        data.find(course)


def test_the_class_map_may_be_absent_or_written_another_way(course: Path) -> None:
    path = course / "class_map.json"
    path.write_text(json.dumps(dict(reversed(CLASS_MAP.items())), indent=4), encoding="utf-8-sig")
    assert len(data.find(course)) == 40
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(BloodcellError, match="not a table"):
        data.find(course)
    path.unlink()
    assert len(data.find(course)) == 40
    path.mkdir()
    with pytest.raises(BloodcellError, match="not a table"):
        data.find(course)


def test_labels_follow_names_not_the_order_of_a_listing(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, listing = data.find(course), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listing(self), reverse=True)))
    assert data.find(course) == straight
    assert all(NAMES[file.label] == file.path.parent.name for file in straight)


# Splits


def random_cells(per_class: int, seed: int = 0) -> CellImages:
    images = np.random.default_rng(seed).integers(0, 256, (8 * per_class, 3, 6, 6))
    return cells_of(images, sorted(list(range(8)) * per_class))


@pytest.mark.parametrize("per_class", [5, 7, 40])
def test_folds_are_stratified_disjoint_and_complete(per_class: int) -> None:
    cells = random_cells(per_class)
    parts = data.folds(cells)
    assert sorted(np.concatenate([held_out for _, held_out in parts])) == list(range(len(cells)))
    for train, held_out in parts:
        assert sorted(np.concatenate([train, held_out])) == list(range(len(cells)))
        assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
        counts = np.bincount(cells.labels[held_out], minlength=8)
        assert per_class // 5 <= counts.min() and counts.max() <= -(-per_class // 5)
        assert train.dtype == held_out.dtype == np.int64


def test_the_split_is_the_first_fold_and_the_same_each_time() -> None:
    cells = random_cells(10)
    train, held_out = data.split(cells)
    assert len(train) == 64 and np.array_equal(np.bincount(cells.labels[held_out]), [2] * 8)
    assert np.array_equal(data.split(cells)[1], held_out) and np.array_equal(data.folds(cells)[0][1], held_out)
    assert np.array_equal(data.split(cells, seed=42)[1], held_out)
    assert not np.array_equal(data.split(cells, seed=43)[1], held_out)


def test_every_size_and_crop_has_the_same_folds(course: Path) -> None:
    expected = [held_out for _, held_out in data.folds(data.load(course, pixels=24))]
    for pixels, crop in ((32, None), (24, 20), (48, 30)):
        found = [held_out for _, held_out in data.folds(data.load(course, pixels=pixels, crop=crop))]
        assert all(map(np.array_equal, found, expected))


def test_identical_pictures_stay_on_one_side() -> None:
    cells = random_cells(20)
    for i in range(0, 120, 6):
        cells.images[i + 1] = cells.images[i]
    cells.images[130:134] = cells.images[130].clone()
    cells.images[155] = cells.images[4]  # in two classes
    pictures = [image.numpy().tobytes() for image in cells.images]
    for seed in range(5):
        for train, held_out in data.folds(cells, seed=seed):
            assert not {pictures[i] for i in train} & {pictures[i] for i in held_out}
            assert np.bincount(cells.labels[held_out], minlength=8).min() >= 3


def test_the_same_picture_in_another_file_is_identical(course: Path) -> None:
    folder = course / "train" / "ig"
    for i in range(5):
        if i % 2:
            shutil.copy(folder / f"X_{i:03d}.jpg", folder / f"Y_{i}.jpg")
        else:
            Image.open(folder / f"X_{i:03d}.jpg").save(folder / f"Y_{i}.png")
    cells = data.load(course, pixels=24)
    assert len(set(cells.sha256)) == 45 - 2
    for train, held_out in data.folds(cells):
        for side in (train, held_out):
            sides = [cells.names[i][2:].strip("0.jpgn") for i in side if cells.labels[i] == 3]
            assert all(sides.count(one) == 2 for one in sides)


def test_too_few_different_pictures_are_told() -> None:
    cells = random_cells(5)
    cells.images[36] = cells.images[35]
    with pytest.raises(BloodcellError, match="platelet has fewer than 5 different pictures"):
        data.split(cells)
    assert len(data.folds(cells, k=4)) == 4


# The course's images


@pytest.fixture
def listed(course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The course folder with a manifest of what it holds."""
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["part", "name", "class", "prefix", "width", "height", "sha256"])
        for path in sorted(course.glob("train/*/*.jpg")):  # names must differ between classes, as the course's do
            named = path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
            rows.writerow(["train", named.name, path.parent.name, "X", 36, 40, data.sha256_of(named)])
        for path in sorted(course.glob("test/*.jpg")):
            rows.writerow(["test", path.name, "", "", 36, 40, data.sha256_of(path)])
    monkeypatch.setattr(paths, "MANIFEST", tmp_path / "manifest.csv")
    data.manifest.cache_clear()
    yield course
    data.manifest.cache_clear()


def test_exactly_the_listed_images_are_the_course(listed: Path) -> None:
    assert data.load(listed, pixels=8).is_course and data.load(listed, pixels=8).source == data.COURSE
    assert data.load(listed, pixels=8, part="test").is_course
    renamed = listed.rename(listed.with_name("other name"))
    assert data.load(renamed, pixels=8).is_course


def one_pixel(folder: Path) -> None:
    path = folder / "ig_X_000.jpg"
    path.write_bytes(path.read_bytes() + b"\0")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte more": one_pixel,
    "one less": lambda ig: (ig / "ig_X_000.jpg").unlink(),
    "one more": lambda ig: shutil.copy(ig / "ig_X_000.jpg", ig / "ig_X_009.jpg"),
    "another name": lambda ig: (ig / "ig_X_000.jpg").rename(ig / "ig_X_009.jpg"),
    "another class": lambda ig: (ig / "ig_X_000.jpg").rename(ig.parent / "platelet" / "ig_X_000.jpg"),
    "twice, in two classes": lambda ig: shutil.copy(ig / "ig_X_000.jpg", ig.parent / "platelet"),
    "one left out": lambda ig: (ig / "ig_X_000.jpg").write_bytes(b""),
    "two names exchanged": lambda ig: (
        (ig / "ig_X_000.jpg").rename(ig / "x"),
        (ig / "ig_X_001.jpg").rename(ig / "ig_X_000.jpg"),
        (ig / "x").rename(ig / "ig_X_001.jpg"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_is_not_the_course(listed: Path, change: str) -> None:
    CHANGES[change](listed / "train" / "ig")
    cells = data.load(listed, pixels=8, skip_bad=True)
    assert cells.source == "course" and not cells.is_course
    assert data.load(listed, pixels=8, part="test").is_course


def test_drawn_cells_are_called_so(course: Path) -> None:
    (course / "synthetic.json").write_text("{}")
    assert data.load(course, pixels=8).source == data.SYNTHETIC


@real
def test_the_real_course_images(large: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "CACHE", large[1])
    cells = data.load(REAL, pixels=32, crop=280)
    assert cells.is_course and data.load(REAL, pixels=32, crop=280, part="test").is_course
    assert np.array_equal(np.bincount(cells.labels), [400] * 8)
    train, held_out = data.split(cells)
    assert (len(train), len(held_out)) == (2560, 640)
    assert np.array_equal(np.bincount(cells.labels[held_out]), [80] * 8)
    held_outs = [held_out for _, held_out in data.folds(cells)]
    assert all(np.array_equal(np.bincount(cells.labels[part]), [80] * 8) for part in held_outs)
    assert len(np.unique(np.concatenate(held_outs))) == 3200
    for k, part in enumerate(held_outs):  # those that every run was recorded with
        run = np.load(paths.RESULTS / "cpu" / f"cv_fold{k}" / "seed0" / "validation.npz")
        assert sorted(run["names"]) == sorted(cells.names[i] for i in part)
    other = data.load(REAL, pixels=24, crop=200)
    assert all(np.array_equal(a[1], b) for a, b in zip(data.folds(other), held_outs))
    assert data.folds(other.subset(range(3199)))[0][1].max() < 3199, "fewer images have folds of their own"
    twins = [i for i, digest in enumerate(cells.sha256) if cells.sha256.count(digest) > 1]
    assert len(twins) == 2 and torch.equal(*cells.images[twins])
    assert sum(set(twins) <= set(part.tolist()) for part in held_outs) == 1
