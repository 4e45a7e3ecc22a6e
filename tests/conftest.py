"""For every test: one thread a process, the longest file first, real signals and whole paths."""

from __future__ import annotations

import os
import signal
import threading

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
)


def pytest_collection_modifyitems(items):
    places = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
