"""For every test: one thread a process, the longest file first, real signals and whole paths."""

from __future__ import annotations

import os
import signal
import threading

import filelock
import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for every process that a test starts

if os.environ.get("BLOODCELL_DATA"):  # tests change folders
    os.environ["BLOODCELL_DATA"] = os.path.abspath(os.environ["BLOODCELL_DATA"])
if threading.current_thread() is threading.main_thread():  # a shell's background job, and all it starts, ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST_FIRST = (
    "test_end_to_end.py",
    "test_study.py",
    "test_cli.py",
    "test_notebooks.py",
    "test_lab.py",
    "test_report.py",
    "test_documents.py",
)


def pytest_collection_modifyitems(items):
    places = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture
def small(monkeypatch):
    """A profile that is no demo and takes the images of tests as they are: `small(pixels)` gives its name."""
    from bloodcell_lib import plans  # after the number of threads is set

    def add(pixels: int) -> str:
        monkeypatch.setitem(plans.PROFILES, "small", plans.Profile("small", pixels, crop=200, epochs=2, seeds=(0,)))
        return "small"

    return add


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A folder with `runs`, the record of a very short training, its images `cells`, and `weights` exported from it."""
    import trained

    side_by_side = "PYTEST_XDIST_WORKER" in os.environ
    home = tmp_path_factory.getbasetemp().parent / "published" if side_by_side else tmp_path_factory.mktemp("published")
    with filelock.FileLock(f"{home}.lock"):  # made once for all processes
        if not (home / "weights").exists():
            trained.publish(home)
    return home


@pytest.fixture(scope="session")
def run_folder(published):
    return published / "runs" / "cpu" / "final" / "seed0"


@pytest.fixture(scope="session")
def weights(published):
    return published / "weights"


@pytest.fixture(scope="session")
def drawn(published):
    """64 drawn cells in train/<class>/ and eight in test/."""
    return published / "cells"
