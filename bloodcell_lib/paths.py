"""Every path, from this file's place and the environment, and the one way to write a file: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bloodcell_lib.errors import BloodcellError


def from_environment(name: str, otherwise: Path) -> Path:
    """The folder that an environment variable names, absolute and with `~` spelt out, else `otherwise`."""
    return Path(os.path.expanduser(os.environ.get(name) or otherwise)).absolute()


ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
REPORT = ROOT / "report"
MANIFEST = ROOT / "data" / "manifest.csv"
FOLDS_FILE = ROOT / "data" / "folds.csv"
DRAWN = "synthetic.json"  # in a folder of drawn cells, and in no other

# The environment may move what a run reads and writes: tests and clusters do.
RESULTS = from_environment("BLOODCELL_RESULTS", REPORT / "results")
RUNS = from_environment("BLOODCELL_RUNS", ROOT / "runs")
RAW = from_environment("BLOODCELL_RAW", ROOT / "data" / "raw")
WEIGHTS = from_environment("BLOODCELL_WEIGHTS", Path(__file__).resolve().parent / "weights")
CACHE = from_environment("BLOODCELL_CACHE", ROOT / "data" / "cache")


def data_folder() -> Path | None:
    """The user's images: `BLOODCELL_DATA` if it is set, else `data/raw/course` if it was fetched, else None."""
    fetched = RAW / "course"
    if os.environ.get("BLOODCELL_DATA") or fetched.is_dir():
        return from_environment("BLOODCELL_DATA", fetched)
    return None


@contextlib.contextmanager
def write_whole(target: Path) -> Iterator[Path]:
    """Gives a temporary path beside `target`; when the block ends well it is flushed and renamed to `target`, or to
    what that links to.

    Raises BloodcellError if the disk is full or the folder cannot be written, and for a device or a pipe, which is no
    file to take the place of; then nothing is left behind.
    """
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise BloodcellError(f"{target} is a device or a pipe: give a file to write.")
    target = Path(os.path.realpath(target) if os.path.islink(target) else target)
    temporary: Path | None = None
    try:
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            _flush(temporary)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder_whole(target: Path, replace: bool = False) -> Iterator[Path]:
    """The same for a folder: it appears with all its files, or not at all; with `replace`, in place of what is there.

    Raises BloodcellError if `target` was made by somebody else meanwhile, or cannot be written.
    """
    target = Path(os.path.realpath(target))  # a link stays one
    temporary: Path | None = None
    before: Path | None = None
    try:
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    _flush(path)
            os.chmod(temporary, 0o777 & ~_umask())
            if replace and target.exists():
                before = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
                os.rename(target, before)
            try:
                os.rename(temporary, target)
            except OSError as error:
                if before is not None:
                    os.rename(before, target)
                    raise
                if not target.exists():
                    raise
                raise BloodcellError(
                    f"{target} was written by another run meanwhile: this run's copy is dropped."
                ) from error
    finally:
        for left in (temporary, before):
            if left is not None and left.exists():
                shutil.rmtree(left)


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    """Turns what goes wrong while `target` is written into one sentence; the code's own mistakes pass."""
    try:
        yield
    except BloodcellError:
        raise
    except Exception as error:
        # Writers in C++ and Rust (torch, safetensors) have errors of their own, so the disk is asked.
        full = not isinstance(error, OSError) and shutil.disk_usage(target.parent).free < 1 << 20
        if not (full or isinstance(error, OSError)):
            raise
        why = "No space left on device" if full else error.strerror or error
        raise BloodcellError(f"Cannot write {target}: {why}. Free some space or choose another folder.") from error


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
