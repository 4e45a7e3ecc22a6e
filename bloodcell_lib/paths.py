"""Every path, from this file's place and the environment, and the one way to write a file: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bloodcell_lib.errors import BloodcellError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
REPORT = ROOT / "report"
RESULTS = REPORT / "results"
WEIGHTS = Path(__file__).resolve().parent / "weights"
MANIFEST = ROOT / "data" / "manifest.csv"
CLASS_MAP_FILE = ROOT / "data" / "class_map.json"

# The environment may move what a run reads and writes: tests and clusters do.
RUNS = Path(os.environ.get("BLOODCELL_RUNS") or ROOT / "runs").absolute()
RAW = Path(os.environ.get("BLOODCELL_RAW") or ROOT / "data" / "raw").absolute()
CACHE = Path(os.environ.get("BLOODCELL_CACHE") or ROOT / "data" / "cache").absolute()


def data_folder() -> Path | None:
    """The user's images: `BLOODCELL_DATA` if it is set, else `data/raw/course` if it was fetched, else None."""
    named = os.environ.get("BLOODCELL_DATA")
    if named:
        return Path(named).expanduser().absolute()
    fetched = RAW / "course"
    return fetched if fetched.is_dir() else None


@contextlib.contextmanager
def write_whole(target: Path) -> Iterator[Path]:
    """Gives a temporary path beside `target`; when the block ends well it is flushed and renamed to `target`.

    Raises BloodcellError if the disk is full or the folder cannot be written; then nothing is left behind.
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise BloodcellError(
            f"Cannot write {target}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder_whole(target: Path) -> Iterator[Path]:
    """The same for a folder: it appears with all its files, or not at all.

    Raises BloodcellError if `target` was made by somebody else meanwhile, or cannot be written.
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        os.chmod(temporary, 0o777 & ~_umask())
        os.rename(temporary, target)
    except OSError as error:
        if target.exists():
            raise BloodcellError(
                f"{target} was written by another run meanwhile: this run's copy is dropped."
            ) from error
        raise BloodcellError(
            f"Cannot write {target}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
