"""For every test: one thread a process, since tests run side by side, and the longest file first."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for every process that a test starts

LONGEST_FIRST = (
    "test_end_to_end.py",
    "test_study.py",
    "test_cli.py",
    "test_notebooks.py",
    "test_lab.py",
    "test_report.py",
)


def pytest_collection_modifyitems(items):
    places = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
