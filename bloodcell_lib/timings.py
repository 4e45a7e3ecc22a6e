"""Speed as ratios: contenders that take turns at the same work, each in a process of its own.

Turns, so that whatever else the machine does hurts all alike; processes, so that threads, allocator and peak memory
are each contender's own. What is kept is every lap, so that the spread can be shown.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch

from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.machine import peak_memory, reset_peak_memory


@dataclass(frozen=True)
class Lap:
    """One turn of one contender: items done, seconds, and most bytes held.

    memory: of the GPU, or on a CPU the process's resident memory. own: of the process without mapped files, which the
    system takes back when it needs room.
    """

    items: int
    seconds: float
    memory: int
    own: int

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds


Work = Callable[[], int]  # does one lap and returns how many items it did


@dataclass
class Comparison:
    """What contenders did at the same work. Each rate is divided by what `base` did in the same turn.

    rates: items a second, one for each turn. memory, own_memory: most bytes held, as in `Lap`. notes: what to know of
    a contender, or, where it has no rates, why it was left out.
    """

    title: str
    base: str
    unit: str = "images/s"
    rates: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    own_memory: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def ratios(self, name: str) -> list[float]:
        """The contender's rate over the base's, turn by turn; [] where either was left out."""
        return [rate / base for rate, base in zip(self.rates.get(name, []), self.rates.get(self.base, []))]

    def to_json(self) -> dict[str, Any]:
        """All of it, and of each contender's ratios the median, the lowest and the highest."""
        ratio = {name: summary(self.ratios(name)) for name in self.rates if self.ratios(name)}
        return {**asdict(self), "ratio": ratio}


def summary(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def timed(work: Work, device: torch.device) -> Lap:
    """One lap of `work`, with the device's queue empty before and after."""
    reset_peak_memory(device)
    _wait(device)
    with own_memory() as own:
        began = time.perf_counter()
        items = work()
        _wait(device)
        seconds = time.perf_counter() - began
    return Lap(items, seconds, peak_memory(device), own())


@contextlib.contextmanager
def own_memory(every: float = 0.05) -> Iterator[Callable[[], int]]:
    """Gives a function for the most bytes that this process held for itself within the block, looked at every so many
    seconds: the system keeps no peak of them."""
    process, ended, seen = psutil.Process(), threading.Event(), [0]

    def look() -> None:
        while True:
            memory = process.memory_info()
            seen.append(max(seen.pop(), memory.rss - getattr(memory, "shared", 0)))  # shared: mapped files too
            if ended.wait(every):
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: seen[0]
    finally:
        ended.set()
        watcher.join()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Lane:
    """A contender in a process of its own: `maker(*arguments)` is called there once and gives the work of a lap.

    `maker` must be a module's function. What goes wrong there is raised here as a BloodcellError.
    """

    def __init__(self, device: str, threads: int, maker: Callable[..., Work], *arguments: Any) -> None:
        self._pipe, theirs = _context().Pipe()
        # Not a daemon, which may have no children: rival pipelines start workers.
        self._process = _context().Process(target=_serve, args=(theirs, device, threads, maker, arguments))
        self._process.start()
        theirs.close()

    def begin(self) -> None:
        """Starts a lap."""
        with contextlib.suppress(OSError):  # `end` tells that the process is gone
            self._pipe.send("lap")

    def end(self) -> Lap:
        """Waits for the lap. Raises BloodcellError with what the process said, or that it died."""
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise BloodcellError(f"its process ended with code {self._process.exitcode}") from error
        if isinstance(answer, str):
            raise BloodcellError(answer)
        return answer

    def close(self) -> None:
        """Ends the process, which notices that nobody asks any more."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _context() -> Any:
    """A way to start processes in which all that is slow to import is imported already, where the system has it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bloodcell_lib.trainer", "torch._dynamo", "torchvision"])
    return context


def _serve(pipe: Connection, device: str, threads: int, maker: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
    """What a lane's process does until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    torch.set_num_threads(threads)
    where, work = torch.device(device), None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pipe.recv()
            try:
                work = work or maker(*arguments)
                pipe.send(timed(work, where))
            except Exception as error:  # whatever a contender cannot do is told in its row
                pipe.send((str(error).strip().splitlines() or [type(error).__name__])[0])


Contenders = Mapping[str, list[Lane]]


@contextlib.contextmanager
def lanes(contenders: dict[str, list[Lane]]) -> Iterator[Contenders]:
    """Closes every lane in the end."""
    try:
        yield contenders
    finally:
        for side_by_side in contenders.values():
            for lane in side_by_side:
                lane.close()


def race(
    comparison: Comparison,
    contenders: Contenders,
    repetitions: int,
    say: Callable[[str], None],
    warm_up: bool = True,
) -> Comparison:
    """Lets each contender do `repetitions` laps, in turns; fills `comparison`. With `warm_up` a first turn is not kept.

    A contender of several lanes runs them side by side: its items are their sum, its time the slowest's. One that
    fails is left out with a note.
    """
    left = list(contenders)
    for turn in range(-1 if warm_up else 0, repetitions):
        # To and fro, so that a slow drift favours nobody.
        for name in left[:] if turn % 2 else left[::-1]:
            say(f"{comparison.title}: {name}, " + ("warm-up" if turn < 0 else f"{turn + 1} of {repetitions}"))
            try:
                together = _lap(contenders[name])
            except BloodcellError as error:
                comparison.notes[name] = f"left out: {error}"
                comparison.rates.pop(name, None)
                left.remove(name)
                continue
            comparison.memory[name] = max(comparison.memory.get(name, 0), together.memory)
            comparison.own_memory[name] = max(comparison.own_memory.get(name, 0), together.own)
            if turn >= 0:
                comparison.rates.setdefault(name, []).append(together.rate)
    for part in (comparison.rates, comparison.memory, comparison.own_memory):
        kept = {name: part[name] for name in left if name in part}  # in the order given
        part.clear()
        part.update(kept)
    return comparison


def _lap(side_by_side: list[Lane]) -> Lap:
    for lane in side_by_side:
        lane.begin()
    laps = [lane.end() for lane in side_by_side]
    items, memory, own = (sum(getattr(lap, name) for lap in laps) for name in ("items", "memory", "own"))
    return Lap(items, max(lap.seconds for lap in laps), memory, own)
