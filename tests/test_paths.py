"""Whole or not at all: every way in which a write can be cut off, and what the environment may say."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bloodcell_lib import paths
from bloodcell_lib.errors import BloodcellError

fork = multiprocessing.get_context("fork")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_with_the_usual_permissions(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.txt"
    with paths.write_whole(target) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".txt" and temporary.parent == target.parent
        assert not target.exists()
    with paths.write_whole(target) as temporary:
        temporary.write_text("two")
        assert target.read_text() == "one"
    assert target.read_text() == "two"
    assert left(target.parent) == ["a.txt"]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_link_is_followed_and_a_pipe_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "kept" / "target.json"
    link.symlink_to(target)
    for text in ("new", "newer"):
        with paths.write_whole(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink() and target.read_text() == text
    os.mkfifo(pipe := tmp_path / "pipe")
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(BloodcellError, match="is a device or a pipe"), paths.write_whole(path):
            raise AssertionError("begun")
        assert path.exists() and not path.is_file()


def test_a_folder_appears_whole_and_with_the_usual_permissions(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with paths.write_folder_whole(target) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a").write_text("one")
        assert not target.exists()
    assert (target / "deep" / "a").read_text() == "one"
    assert left(target.parent) == ["folder"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "old").write_text("old")
    (tmp_path / "link").symlink_to("far")
    with paths.write_folder_whole(tmp_path / "link", replace=True) as temporary:
        (temporary / "new").write_text("new")
    assert (tmp_path / "link").is_symlink() and left(tmp_path / "far") == ["new"] and left(tmp_path) == ["far", "link"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, BloodcellError])
def test_what_goes_wrong_inside_passes_and_leaves_nothing_new(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(error, match="inside"), paths.write_whole(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise error("inside")
    with pytest.raises(error, match="inside"), paths.write_folder_whole(tmp_path / "b") as temporary:
        (temporary / "half").write_text("half")
        raise error("inside")
    assert left(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (paths.write_whole, paths.write_folder_whole):
        with pytest.raises(BloodcellError, match=r"Cannot write .*inside: .*\."), write(tmp_path / "file" / "inside"):
            pytest.fail("nothing to write to")
        with pytest.raises(BloodcellError, match="File name too long"), write(tmp_path / ("a" * 300)):
            pytest.fail("nothing to write to")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BloodcellError, match="Cannot write"), paths.write_whole(tmp_path / "folder") as temporary:
        temporary.write_text("a file in the place of a folder")
    assert left(tmp_path) == ["file", "folder"]


def test_the_second_of_two_writers_of_a_folder_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(BloodcellError, match="written by another run meanwhile"),
        paths.write_folder_whole(tmp_path / "a") as slow,
    ):
        (slow / "name").write_text("slow")
        with paths.write_folder_whole(tmp_path / "a") as quick:
            (quick / "name").write_text("quick")
    assert (tmp_path / "a" / "name").read_text() == "quick"
    assert left(tmp_path) == ["a"]


def test_a_folder_takes_the_place_of_another_only_when_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with paths.write_folder_whole(tmp_path / "a", replace=True) as temporary:
            (temporary / name).write_text(name)
        assert left(tmp_path / "a") == [name] and left(tmp_path) == ["a"]
    with pytest.raises(ValueError, match="inside"), paths.write_folder_whole(tmp_path / "a", replace=True) as temporary:
        (temporary / "three").touch()
        raise ValueError("inside")
    assert left(tmp_path / "a") == ["two"] and left(tmp_path) == ["a"]


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.rename, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    monkeypatch.setattr(os, "rename", failing)
    with (
        pytest.raises(BloodcellError, match="Input/output error"),
        paths.write_folder_whole(tmp_path / "a", replace=True) as temporary,
    ):
        (temporary / "new").touch()
    assert left(tmp_path / "a") == ["old"] and left(tmp_path) == ["a"]


def test_many_writers_of_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    def write(i: int) -> None:
        for _ in range(20):
            with paths.write_whole(tmp_path / "a") as temporary:
                temporary.write_bytes(bytes([i]) * 50_000)

    writers = [fork.Process(target=write, args=(i,)) for i in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        with contextlib.suppress(FileNotFoundError):
            found = (tmp_path / "a").read_bytes()
            assert len(found) == 50_000 and len(set(found)) == 1
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert left(tmp_path) == ["a"]


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    def write() -> None:
        with paths.write_whole(tmp_path / "a") as temporary:
            temporary.write_text("half")
            (tmp_path / "begun").touch()
            time.sleep(60)

    (tmp_path / "a").write_text("old")
    writer = fork.Process(target=write)
    writer.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert (tmp_path / "a").read_text() == "old"


def _text(path: Path) -> None:
    path.write_bytes(bytes(3 << 20))


def _numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3 << 18))


def _torch(path: Path) -> None:
    torch.save({"a": torch.zeros(3 << 18)}, path)


def _safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(3 << 18)}, path)


@pytest.mark.parametrize("write", [_text, _numpy, _torch, _safetensors])
def test_a_full_disk_is_told_whoever_writes(small_disk: Path, write: Callable[[Path], None]) -> None:
    (small_disk / "kept").write_text("old")
    full = r"Cannot write .*: No space left on device"
    with pytest.raises(BloodcellError, match=full), paths.write_whole(small_disk / "kept") as temporary:
        write(temporary)
    with pytest.raises(BloodcellError, match=full), paths.write_folder_whole(small_disk / "folder") as temporary:
        write(temporary / "a")
    assert left(small_disk) == ["kept"]
    assert (small_disk / "kept").read_text() == "old"
    assert shutil.disk_usage(small_disk).free > 900_000


def test_a_bound_on_file_size_is_told(tmp_path: Path) -> None:
    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with paths.write_whole(tmp_path / "a") as temporary:
                temporary.write_bytes(bytes(200_000))
        except BloodcellError as error:
            os._exit(0 if "File too large" in str(error) else 3)
        os._exit(4)

    writer = fork.Process(target=write)
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    assert left(tmp_path) == []


def test_the_environment_names_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for value, meant in (
        ("~/here", tmp_path / "here"),
        ("here", tmp_path / "here"),
        ("/there", Path("/there")),
        ("", tmp_path / "default"),
    ):
        monkeypatch.setenv("BLOODCELL_TEST", value)
        assert paths.from_environment("BLOODCELL_TEST", tmp_path / "default") == meant
    monkeypatch.setenv("BLOODCELL_TEST", "~nobody-of-this-name/x")
    assert paths.from_environment("BLOODCELL_TEST", tmp_path) == tmp_path / "~nobody-of-this-name" / "x"


def test_the_images_are_those_named_else_those_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RAW", tmp_path)
    monkeypatch.delenv("BLOODCELL_DATA", raising=False)
    assert paths.data_folder() is None
    (tmp_path / "course").mkdir()
    assert paths.data_folder() == tmp_path / "course"
    monkeypatch.setenv("BLOODCELL_DATA", str(tmp_path / "mine"))
    assert paths.data_folder() == tmp_path / "mine", "a folder that is not there is for the reader to refuse"
