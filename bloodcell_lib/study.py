"""Running many: the same grid in this process, in a pool of processes, or on a Dask cluster.

Each run writes its own record, so a study that was cut off goes on where it stopped, and a worker that dies loses no
more than what its run did since its last epoch.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from bloodcell_lib import earlier, experiments, plans, views
from bloodcell_lib.data import CellImages
from bloodcell_lib.decode import usable_cores
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.tasks import Task


@dataclass
class Progress:
    """One row of the live table. state: "waits", "runs", "done", "recorded" (before this study) or "failed"."""

    task: Task
    state: str = "waits"
    attempts: int = 0
    seconds: float = 0.0
    accuracy: float | None = None
    why: str = ""


def grid(names: Iterable[str], seeds: Iterable[int] | None, profile: str, **settings: Any) -> list[Task]:
    """Every experiment with every seed once, seed by seed, so that a study cut off has whole comparisons.

    seeds: None takes the profile's, and of them no more than the experiment's row says. Raises BloodcellError for an
    unknown experiment or profile, before anything runs.
    """
    rows = [plans.experiment(name) for name in dict.fromkeys(names)]
    budget = plans.profile(profile)
    wanted = dict.fromkeys(budget.seeds if seeds is None else seeds)
    most = {row.name: row.seeds if seeds is None and row.seeds else len(wanted) for row in rows}
    return [
        Task(row.name, seed, budget.name, **settings)
        for place, seed in enumerate(wanted)
        for row in rows
        if place < most[row.name]
    ]


class InProcess(Executor):
    """Runs what is submitted at once, here: an executor for debuggers, notebooks and one device."""

    slots = 1

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Calls `fn` and returns its finished future; Ctrl-C is not caught."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """`slots` pools of one process each, so that a process that dies takes only its own run with it."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # Spawned, not forked: a fork of a process that has used CUDA or threads does not work.
        self._context = multiprocessing.get_context("spawn")
        self._tie, self._alive = self._context.Pipe(duplex=False)
        self._idle: queue.SimpleQueue[ProcessPoolExecutor] = queue.SimpleQueue()
        self._busy: set[ProcessPoolExecutor] = set()
        for _ in range(slots):
            self._idle.put(self._pool())

    def _pool(self) -> ProcessPoolExecutor:
        threads = max(1, usable_cores() // self.slots)
        return ProcessPoolExecutor(1, self._context, _begin, (threads, self._tie))

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Hands `fn` to an idle process, or waits for one."""
        pool = self._idle.get()
        try:
            future = pool.submit(fn, *args, **kwargs)
        except BrokenProcessPool:  # it died while it had nothing to do
            pool = self._pool()
            future = pool.submit(fn, *args, **kwargs)
        self._busy.add(pool)

        def back(done: Future) -> None:
            self._busy.discard(pool)
            broken = not done.cancelled() and isinstance(done.exception(), BrokenProcessPool)
            self._idle.put(self._pool() if broken else pool)

        future.add_done_callback(back)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes; a run that is under way ends with them, and its last epoch stays on disk."""
        busy = list(self._busy)
        if not busy:
            while not self._idle.empty():
                self._idle.get().shutdown(wait)
        self._alive.close()
        for pool in busy:
            pool.shutdown(wait, cancel_futures=cancel_futures)


def _begin(threads: int, tie: Connection) -> None:
    """Prepares a new process: Ctrl-C is its parent's to answer, and it ends when the parent lets go, however."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        tie.poll(None)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def dask_executor(address: str, timeout: float = 10.0) -> Iterator[Executor]:
    """The workers of a Dask cluster as an executor; they must see the same folders for images and records.

    Raises BloodcellError if dask.distributed is not installed or no scheduler answers within `timeout` seconds.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise BloodcellError("--dask needs dask.distributed: pip install -e '.[cluster]'.") from error
    try:
        client = Client(address, timeout=timeout)
    except (OSError, TimeoutError, ValueError) as error:
        raise BloodcellError(f"No Dask scheduler answers at {address}: start one with `dask scheduler`.") from error
    with client:
        # pure=False: the same task may have to run again; retries are ours, a dead worker's runs are Dask's.
        executor = client.get_executor(pure=False)
        executor.slots = max(1, len(client.nthreads()))  # scheduler_info may show a few workers only
        yield executor


# Torch's random state belongs to the process, and a Dask worker may have many threads.
_ALONE = threading.Lock()


@functools.lru_cache(maxsize=2)
def _images(profile: str, folder: Path, skip_bad: bool, view: tuple[int, int | None]) -> CellImages:
    return views.load_images(profile, folder, skip_bad, progress=False, view=view)


def execute(task: Task, folder: Path, skip_bad: bool = False) -> tuple[float | None, float]:
    """Makes one run wherever it is called; returns its final validation accuracy and its seconds."""
    with _ALONE:
        cells = _images(task.profile, folder, skip_bad, task.view)
        record = experiments.run(task, cells, lambda: experiments.whole(task, folder, skip_bad))
    return record.accuracy(), record.info["wall_seconds"]


def look(task: Task, folder: Path, skip_bad: bool = False) -> tuple[float | None, float] | None:
    """What `execute` returns, of a run that is recorded; None where it is to be made."""
    with _ALONE:
        record = experiments.standing(task, _images(task.profile, folder, skip_bad, task.view))
    return record and (record.accuracy(), record.info["wall_seconds"])


def run_all(
    tasks: list[Task],
    folder: Path,
    executor: Executor | None = None,
    skip_bad: bool = False,
    retries: int = 1,
    show: Callable[[list[Progress]], None] = lambda rows: None,
) -> list[Progress]:
    """Makes every run that has no record yet, after those among them that it goes on from or is taught by; one that
    fails is retried and then left, and the rest goes on.

    executor: any `concurrent.futures.Executor`, with an attribute `slots` that says how many runs it makes at once.
    show: called with all rows whenever one changes.
    """
    executor = executor or InProcess()
    slots = getattr(executor, "slots", 1)
    rows = [Progress(task) for task in tasks]
    for row in rows:
        if (row.task.folder / "record.json").exists():
            # Looked into, so that a record of another configuration is found out.
            found = InProcess().submit(look, row.task, folder, skip_bad)
            if found.exception() or found.result():
                _finish(row, found, "recorded", retries=0)
    show(rows)
    needed = {row.task.folder: {run.folder for run in earlier.needed(row.task)} for row in rows}
    running: dict[Future, tuple[Progress, float]] = {}
    while True:
        unmade = {row.task.folder for row in rows if row.state in ("waits", "runs")}
        waiting = [row for row in rows if row.state == "waits" and unmade.isdisjoint(needed[row.task.folder])]
        while waiting and len(running) < slots:
            row = waiting.pop(0)
            row.state, row.attempts = "runs", row.attempts + 1
            show(rows)
            running[executor.submit(execute, row.task, folder, skip_bad)] = (row, time.monotonic())
        if not running:
            return rows
        done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        for future in done:
            row, began = running.pop(future)
            row.seconds = time.monotonic() - began
            _finish(row, future, "done", retries)
        show(rows)


def _finish(row: Progress, future: Future, state: str, retries: int) -> None:
    error = CancelledError("The cluster dropped this run.") if future.cancelled() else future.exception()
    if error is None:
        row.state = state
        row.accuracy, row.seconds = future.result()
    elif row.attempts <= retries and not isinstance(error, BloodcellError):
        row.state = "waits"  # bad input stays bad; anything else gets a second chance
    else:
        row.state, row.why = "failed", str(error) or type(error).__name__


@contextmanager
def live_table(console: Console | None = None) -> Iterator[Callable[[list[Progress]], None]]:
    """Gives a `show` for `run_all`: a table that renews itself in a terminal, one line an event elsewhere."""
    console = console or Console()
    began = time.monotonic()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda rows: live.update(table(rows, began))
        return
    last: dict[int, str] = {}

    def lines(rows: list[Progress]) -> None:
        for i, row in enumerate(rows):
            if last.get(i, "waits") != row.state:
                last[i] = row.state
                line = " ".join(cells(row)) + "  " + time_left(rows, began)
                console.print(line, highlight=False, markup=False, soft_wrap=True)

    yield lines


def cells(row: Progress) -> tuple[str, str, str, str, str]:
    """What the table says of one run."""
    accuracy = "" if row.accuracy is None else f"{row.accuracy:.2%}"
    seconds = f"{row.seconds:.0f} s" if row.seconds else ""
    return row.task.name, f"seed {row.task.seed}", row.state, accuracy or row.why, seconds


def time_left(rows: list[Progress], began: float) -> str:
    """A guess from the mean time of the runs that this study made."""
    made, left = [r for r in rows if r.state == "done"], [r for r in rows if r.state in ("waits", "runs")]
    if not made or not left:
        return ""
    return f"about {(time.monotonic() - began) / len(made) * len(left) / 60:.0f} min left"


def table(rows: list[Progress], began: float) -> Table:
    """All runs as a table for a terminal."""
    counts = ", ".join(f"{n} {s}" for s in ("done", "recorded", "runs", "waits", "failed") if (n := _count(rows, s)))
    out = Table("experiment", "seed", "state", "validation", "time", title=f"{counts}  {time_left(rows, began)}")
    for row in rows:
        out.add_row(*map(escape, cells(row)))
    return out


def _count(rows: list[Progress], state: str) -> int:
    return sum(row.state == state for row in rows)
