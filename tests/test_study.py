from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from bloodcell_lib import drawn_folder, earlier, experiments, paths, plans, study, views
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.plans import EXPERIMENTS, STUDY
from bloodcell_lib.records import load_records
from bloodcell_lib.study import InProcess, Processes, Progress, dask_executor, grid, run_all
from bloodcell_lib.tasks import Task

PROFILE = "demo/study"
LITE = "efficientnet_lite"
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["bloodcell_lib.study"])


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """A cache, and one thread, for this process and for those that it starts."""
    home, threads = tmp_path_factory.mktemp("cache"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", home)
        patch.setenv("BLOODCELL_CACHE", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return drawn_folder.write(tmp_path_factory.mktemp("drawn") / "cells", per_class=5, test=0)


def tasks(results: Path, names=(LITE,), seeds=(0, 1), epochs: int = 1) -> list[Task]:
    return grid(names, seeds, PROFILE, results=results, changes=(("epochs", epochs),), device="cpu", progress=False)


def states(rows: list[Progress]) -> list[str]:
    return [row.state for row in rows]


def wait_for(condition, seconds: float = 90):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    return found


def holder(checkpoint: Path, among: list[psutil.Process]) -> psutil.Process | None:
    """The process that is making the run of this checkpoint."""
    lock = str(checkpoint.with_suffix(".lock"))
    for process in among:
        with contextlib.suppress(psutil.Error):
            if any(file.path == lock for file in process.open_files()):
                return process
    return None


def kill_in_the_middle(task: Task, among, killed: list[int]) -> threading.Thread:
    """Waits in a thread until `task` has its first epoch on disk, then kills its process with SIGKILL."""

    def watch() -> None:
        wait_for(task.checkpoint.exists)
        process = wait_for(lambda: holder(task.checkpoint, among()))
        process.kill()
        killed.append(process.pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def assert_whole(results: Path, wanted: list[Task], epochs: int) -> None:
    """Every record once, with all its epochs, and nothing half-made beside it."""
    found = load_records(results / PROFILE)
    assert {(r.experiment, r.seed) for r in found} == {(task.name, task.seed) for task in wanted}
    assert len(found) == len(wanted)
    for record in found:
        assert [row["epoch"] for row in record.info["history"]] == list(range(1, epochs + 1))
        assert len(record.validation().names) == record.info["data"]["validation"] == 8
    assert not [path for path in results.rglob("*") if path.name.startswith(".") and path.name != ".checkpoints"]
    assert not list(results.rglob("*.pt"))


# The grid


def test_a_grid_goes_seed_by_seed_and_has_every_run_once(tmp_path):
    found = [(task.experiment, task.seed) for task in tasks(tmp_path, ("no_se", "main", "no_se"), (2, 0, 2))]
    assert found == [("no_se", 2), ("main", 2), ("no_se", 0), ("main", 0)]


def test_cross_validation_takes_one_seed_unless_more_are_asked_for():
    def runs(names, seeds):
        return [(task.experiment, task.seed) for task in grid(names, seeds, "cpu")]

    folds = [name for name, row in EXPERIMENTS.items() if row.group == "cv"]
    assert len(folds) == 5 and {EXPERIMENTS[name].seeds for name in folds} == {1}
    assert [run for run in runs(EXPERIMENTS, None) if run[0] in folds] == [(name, 0) for name in folds]
    assert len(runs(folds, (0, 2))) == 10
    rest = [name for name, row in EXPERIMENTS.items() if not row.seeds]
    assert set(STUDY) <= set(rest)
    assert runs(rest, None) == [(name, seed) for seed in (0, 1, 2) for name in rest]


def test_a_row_may_see_another_part_of_the_photograph_for_longer():
    cpu = plans.profile("cpu")
    views = {name: Task(name, 0, "cpu").view for name in ("best_short", "short_close", "short_large")}
    assert views == {"best_short": (96, 240), "short_close": (96, 200), "short_large": (128, 240)}
    assert cpu.view(replace(EXPERIMENTS["main"], crop=0)) == (96, None)
    epochs = [Task(name, 0, "cpu").plan().train.epochs for name in ("best_short", "short_longer")]
    assert epochs == [plans.SHORT * cpu.epochs, 2 * plans.SHORT * cpu.epochs]


def test_each_run_gets_the_images_that_its_row_sees(tmp_path, images):
    found = run_all(tasks(tmp_path, ("best_short", "short_large"), (0,)), images)
    assert [row.state for row in found] == ["done", "done"]
    seen = {r.info["config"]["pixels"]: r.info["model"]["macs"] for r in load_records(tmp_path / PROFILE)}
    assert list(seen) == [64, 80] and seen[80] > 1.5 * seen[64]
    small = views.load_images(PROFILE, images, progress=False)
    with pytest.raises(BloodcellError, match=r"short_wide.epochs=2 wants 64 pixels, not 80"):
        wide = tasks(tmp_path, ("short_wide",), (0,), 2)[0]
        experiments.run(wide, replace(small, images=torch.zeros(len(small), 3, 80, 80, dtype=torch.uint8)))


def test_a_grid_refuses_what_it_does_not_know():
    with pytest.raises(BloodcellError, match="Unknown experiment 'maim'"):
        grid(["main", "maim"], [0], "cpu")
    with pytest.raises(BloodcellError, match="Unknown profile 'gpu'"):
        grid(["main"], [0], "gpu")


# In this process


def test_in_process_and_once_more(tmp_path, images):
    seen: list[list[str]] = []
    wanted = tasks(tmp_path, (LITE, "final"), (0,))
    rows = run_all(wanted, images, show=lambda rows: seen.append(states(rows)))
    assert states(rows) == ["done", "done"] and [row.attempts for row in rows] == [1, 1]
    assert seen[0] == ["waits", "waits"] and ["runs", "waits"] in seen and ["done", "runs"] in seen
    by_name = {record.experiment: record.info for record in load_records(tmp_path / PROFILE)}
    assert rows[0].accuracy == by_name[wanted[0].name]["final_validation_accuracy"]
    assert rows[0].seconds == by_name[wanted[0].name]["wall_seconds"] and rows[1].accuracy is None
    more = tasks(tmp_path, (LITE, "final"), (0, 1))
    again = run_all(more[:3], images)
    assert states(again) == ["recorded", "recorded", "done"] and [row.attempts for row in again] == [0, 0, 1]
    assert again[0].accuracy == rows[0].accuracy
    # A demo of other images is made anew, and told as such.
    others = drawn_folder.write(tmp_path / "others", per_class=5, test=0, seed=1)
    assert states(run_all(more[:1], others)) == ["done"] and states(run_all(more[:1], others)) == ["recorded"]


def test_bad_input_is_not_tried_twice_and_the_rest_goes_on(tmp_path, images):
    bad = replace(tasks(tmp_path)[0], changes=(("epochs", 1), ("learning_rate", 1e30)))
    damaged = tasks(tmp_path, seeds=(5,))[0]
    damaged.folder.mkdir(parents=True)
    (damaged.folder / "record.json").write_text("{")
    rows = run_all([bad, damaged, *tasks(tmp_path)], images)
    assert states(rows) == ["failed", "failed", "done", "done"]
    assert rows[0].attempts == 1 and "no longer a finite number" in rows[0].why
    assert rows[1].attempts == 0 and "not a whole record" in rows[1].why


class Flaky(InProcess):
    """Fails for a seed as often as is asked, in a way that is nobody's input."""

    def __init__(self, failures: dict[int, list[BaseException]]) -> None:
        self.failures = failures

    def submit(self, fn, task, *args):
        if self.failures.get(task.seed):
            future: Future = Future()
            future.set_exception(self.failures[task.seed].pop())
            return future
        return super().submit(fn, task, *args)


def test_a_run_that_fails_is_tried_once_more(tmp_path, images):
    once, always = [RuntimeError("out of memory")], [RuntimeError("first"), MemoryError()][::-1]
    rows = run_all(tasks(tmp_path, seeds=(0, 1, 2)), images, Flaky({0: once, 1: always}))
    assert states(rows) == ["done", "failed", "done"]
    assert [row.attempts for row in rows] == [2, 2, 1]
    assert rows[1].why == "MemoryError"
    assert states(run_all(tasks(tmp_path, seeds=(0, 1, 2)), images)) == ["recorded", "done", "recorded"]


class Dropping(Executor):
    """Cancels what it is given, as a cluster does whose scheduler is lost."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_what_a_run_needs_is_made_before_it_however_many_are_made_at_once(tmp_path, images):
    class AtOnce:
        slots, open = 4, set()

        def submit(self, _, task, *rest) -> Future:
            started.append(task.name)
            assert not self.open & {run.name for run in earlier.needed(task)}
            self.open.add(task.name)
            future: Future = Future()
            threading.Timer(0.01, self.end, [task.name, future]).start()
            return future

        def end(self, name: str, future: Future) -> None:
            self.open.remove(name)
            future.set_result((0.5, 1.0))

    started = []
    chain = ["travelled_final", "seasoned_final", "magnified_final"]
    names = [*chain, "cv_clean2", "short_distilled", *(name for name in EXPERIMENTS if name.startswith("cv_pair"))]
    given = [Task(name, 0, "cpu", tmp_path) for name in names]
    assert states(run_all(given, images, AtOnce())) == ["done"] * len(given)
    assert sorted(started) == sorted(names) and [name for name in started if name in chain] == chain[::-1]
    taught = {run.name for name in ("cv_clean2", "short_distilled") for run in earlier.needed(given[names.index(name)])}
    assert len(taught) == 7 and taught < set(names), "the pairs with fold 3, and those with the first"
    alone = [Task("seasoned", 0, "cpu", tmp_path)]
    assert states(run_all(alone, images, AtOnce())) == ["done"], "what is not asked for is not waited for"


def test_a_run_that_the_executor_drops_has_failed(tmp_path, images):
    rows = run_all(tasks(tmp_path), images, Dropping())
    assert states(rows) == ["failed", "failed"] and "dropped" in rows[0].why
    assert issubclass(CancelledError, Exception)


def test_ctrl_c_is_not_caught(tmp_path, images):
    def stop(rows):
        if "runs" in states(rows):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(tasks(tmp_path), images, show=stop)


# In processes


def spawned(among: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in among:
        with contextlib.suppress(psutil.Error):  # gone, or not yet waited for
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def hand_out_fast(executor: Processes) -> None:
    """Work given as soon as other work comes back, and to a worker that was killed while it had nothing to do."""
    futures = [executor.submit(abs, 0)]
    for i in range(1, 300):
        futures.append(executor.submit(abs, -i))
        assert futures.pop(0).result() == i - 1
    assert futures[0].result() == 299
    worker = executor.submit(os.getpid).result()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: worker not in [process.pid for process in spawned(children())])
    time.sleep(0.2)
    assert worker not in {executor.submit(os.getpid).result() for _ in range(4)}


def test_a_worker_that_is_killed_loses_only_its_run(tmp_path, images):
    wanted, killed = tasks(tmp_path, seeds=(0, 1, 2, 3), epochs=8), []
    thread = kill_in_the_middle(wanted[1], children, killed)
    with Processes(2) as executor:
        hand_out_fast(executor)
        rows = run_all(wanted, images, executor)
    thread.join()
    wait_for(lambda: not spawned(children()))
    assert states(rows) == ["done"] * 4 and len(killed) == 1
    assert [row.attempts for row in rows] == [1, 2, 1, 1]
    assert_whole(tmp_path, wanted, 8)


def study_here(results: Path, images: Path, epochs: int) -> None:
    """What a process of its own does: the study in two workers, until it is ended."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Processes(2) as executor:
        run_all(tasks(results, seeds=(0, 1, 2), epochs=epochs), images, executor)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_is_ended_goes_on_where_it_was(tmp_path, images, how):
    wanted = tasks(tmp_path, seeds=(0, 1, 2), epochs=8)
    process = processes.Process(target=study_here, args=(tmp_path, images, 8))
    process.start()
    # A run that is done has no checkpoint any more.
    wait_for(lambda: all(task.checkpoint.exists() or task.folder.exists() for task in wanted[:2]))
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(spawned(workers)) == 2
    os.kill(process.pid, how)
    process.join(20)
    assert not process.is_alive()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]  # nobody goes on alone and holds a lock
    assert len(load_records(tmp_path / PROFILE)) < 3
    rows = run_all(wanted, images)
    assert set(states(rows)) <= {"recorded", "done"} and "done" in states(rows)
    assert_whole(tmp_path, wanted, 8)


# On a Dask cluster


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, real processes on this machine: (address, workers)."""
    pytest.importorskip("distributed")
    told, started = tmp_path / "scheduler.json", []

    def start(*command: str) -> psutil.Process:
        log = (tmp_path / f"dask{len(started)}.log").open("wb")
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", *command, "--scheduler-file", str(told)], stdout=log, stderr=log, cwd=tmp_path
            )
        )
        log.close()
        return psutil.Process(started[-1].pid)

    try:
        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_for(told.exists)
        place = ["--local-directory", str(tmp_path / "dask"), "--no-dashboard", "--no-nanny", "--nthreads", "1"]
        workers = [start("distributed.cli.dask_worker", *place) for _ in range(2)]
        yield json.loads(told.read_text())["address"], workers
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_cluster_that_loses_a_worker_ends_with_every_record(tmp_path, images, cluster):
    address, workers = cluster
    results = tmp_path / "runs"
    wanted, killed = tasks(results, seeds=(0, 1, 2, 3, 4), epochs=8), []
    thread = kill_in_the_middle(wanted[1], lambda: workers, killed)
    with dask_executor(address) as client:
        client._client.wait_for_workers(2, timeout=60)
    with dask_executor(address) as executor:
        assert executor.slots == 2
        rows = run_all(wanted, images, executor)
    thread.join()
    assert len(killed) == 1 and states(rows) == ["done"] * 5
    assert_whole(results, wanted, 8)


def test_a_cluster_that_does_not_answer_is_told():
    pytest.importorskip("distributed")
    for address in ("127.0.0.1:9", "nowhere"):
        with pytest.raises(BloodcellError, match=f"No Dask scheduler answers at {address}"):
            dask_executor(address, timeout=1).__enter__()


# What is shown


def progress(state: str, name: str = "main", **more) -> Progress:
    return Progress(Task(name, 0, PROFILE), state, **more)


def test_lines_where_there_is_no_terminal():
    out = io.StringIO()
    rows = [progress("waits"), progress("waits", "final")]
    with study.live_table(Console(file=out, force_terminal=False)) as show:
        show(rows)
        assert out.getvalue() == ""
        rows[0].state = "runs"
        show(rows)
        show(rows)
        rows[0].state, rows[0].accuracy, rows[0].seconds = "done", 0.96875, 61.7
        rows[1].state, rows[1].why = "failed", "cannot read [/data/a.jpg] and [bold]b[/nothing] " + "x" * 200
        show(rows)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["main", "seed", "0", "runs"]
    assert lines[1].startswith("main seed 0 done 96.88% 62 s")
    assert "failed cannot read [/data/a.jpg] and [bold]b[/nothing] xxx" in lines[2]


def test_a_table_in_a_terminal():
    out = io.StringIO()
    rows = [progress("done", accuracy=0.5, seconds=3), progress("failed", "final", why="no [/such] thing")]
    with study.live_table(Console(file=out, force_terminal=True, width=120)) as show:
        show(rows)
    shown = out.getvalue()
    assert "1 done, 1 failed" in shown and "50.00%" in shown and "no [/such] thing" in shown and "final" in shown


def test_time_left():
    now = time.monotonic()
    assert study.time_left([progress("runs"), progress("waits")], now - 600) == ""
    rows = [progress("done"), progress("recorded"), progress("done"), progress("runs"), progress("waits")]
    assert study.time_left(rows, now - 600) == "about 10 min left"
    assert study.time_left([progress("done"), progress("failed")], now - 600) == ""
