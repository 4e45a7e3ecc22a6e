"""Runs the numbered notebooks with papermill, and believes nothing that it has not checked.

papermill calls a notebook done when a cell left by `sys.exit(0)`, when a kernel was killed after its last message, or
when it was given a parameter that nobody reads. So: parameters are looked up before a run; after it every code cell
must have run without an error, and every file that the notebook promises in its metadata must be there.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from bloodcell_lib import paths, shelf
from bloodcell_lib.errors import BloodcellError

KERNEL = "python3"
LIMIT = 12 * 3600.0  # seconds for one notebook: a study takes a night


class LocalKernel(AsyncKernelManager):
    """A kernel behind Unix sockets: no port to collide with another run's, and closed to other users."""

    def _transport_default(self) -> str:
        return "ipc"


@dataclass
class Outcome:
    """How one notebook went. `peak_bytes` is the kernel's resident memory, with all its processes."""

    name: str
    executed: Path
    seconds: float = 0.0
    peak_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def available(folder: Path = paths.NOTEBOOKS) -> dict[str, Path]:
    """The notebooks by their number, "01" first. Raises BloodcellError if there is none."""
    found = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise BloodcellError(f"No notebooks in {folder}: run from a checkout of the repository.")
    return found


def choose(only: list[str] | None, folder: Path = paths.NOTEBOOKS) -> list[Path]:
    """The notebooks whose numbers are in `only` (all for None), in order. Raises BloodcellError for an unknown one."""
    found = available(folder)
    wanted = [number.strip().zfill(2) for number in only] if only else list(found)
    for number in wanted:
        if number not in found:
            raise BloodcellError(f"There is no notebook {number}: choose from {', '.join(found)}.")
    return [found[number] for number in sorted(set(wanted))]


def parameters(path: Path) -> set[str]:
    """The names that the notebook's cell tagged `parameters` gives. Raises BloodcellError if it has no such cell."""
    names = set(papermill.inspect_notebook(str(path)))
    if not names:
        raise BloodcellError(f"{path.name} has no cell tagged 'parameters': add one.")
    return names


def promises(path: Path, home: Path) -> list[Path]:
    """The files that the notebook says it writes: `bloodcell.writes` in its metadata, relative to `home`."""
    metadata = nbformat.read(path, as_version=4).metadata.get("bloodcell", {})
    return [home / name for name in metadata.get("writes", [])]


def check(chosen: list[Path], profile: str, settings: dict[str, Any]) -> None:
    """Raises BloodcellError for a setting that none of the notebooks has, that the runner gives itself, or that names
    records which are not there."""
    every = set().union(*map(parameters, chosen))
    for name in settings:
        if name in ("profile", "data"):
            raise BloodcellError(f"'{name}' is the runner's to set: give --{name}.")
        if name not in every:
            raise BloodcellError(f"No notebook here has a parameter '{name}': choose from {', '.join(sorted(every))}.")
    if "results" in settings:
        shelf.find(str(settings["results"]), profile)


def opens_images(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a notebook needs images: all do but those that tell of records from elsewhere."""
    return "results" not in parameters(path) or settings.get("results", shelf.OWN) == shelf.OWN


def run(
    chosen: list[Path],
    profile: str,
    data: Path | None = None,
    settings: dict[str, Any] | None = None,
    home: Path | None = None,
    limit: float = LIMIT,
) -> Iterator[Outcome]:
    """Executes notebooks one after the other into `<home>/notebooks`; yields each outcome, failed ones too.

    settings: further parameters; each goes to the notebooks that have it. Those that read records read this machine's
    own, unless `results` says otherwise. home: None is `runs/<profile>`, and for records from elsewhere
    `shelf.home_of` them. Raises BloodcellError as `check` does, before anything runs.
    """
    check(chosen, profile, settings or {})
    known = {path: parameters(path) for path in chosen}
    given = {"profile": profile, "data": str(data) if data else "", "results": shelf.OWN, **(settings or {})}
    for path in chosen:
        own = {name: value for name, value in given.items() if name in known[path]}
        place = home or shelf.home_of(str(own.get("results", shelf.OWN)), profile)
        (place / "notebooks").mkdir(parents=True, exist_ok=True)
        yield execute(path, place, own, limit)


def execute(path: Path, home: Path, given: dict[str, Any], limit: float = LIMIT) -> Outcome:
    """Executes one notebook and checks what is left of it. Never raises for what happens inside the notebook."""
    outcome = Outcome(path.stem, home / "notebooks" / path.name)
    began = time.monotonic()
    with watch(outcome, limit):
        try:
            papermill.execute_notebook(
                str(path),
                str(outcome.executed),
                given,
                kernel_name=KERNEL,
                progress_bar=False,
                cwd=str(outcome.executed.parent),
                start_timeout=120,
                kernel_manager_class=LocalKernel,
                # Every shutdown begins with an interrupt, of which a kernel that is busy would tell as of an error.
                extra_arguments=["--log-level=CRITICAL"],
            )
        except PapermillExecutionError as error:
            outcome.problems.append(f"cell {error.exec_count}: {error.ename}: {error.evalue}")
        except Exception as error:  # a dead kernel, a broken notebook, a full disk: collected, not raised
            outcome.problems.append(f"{type(error).__name__}: {str(error).strip() or 'the kernel died'}")
    outcome.seconds = time.monotonic() - began
    if not outcome.problems:
        outcome.problems += faults(outcome.executed)
        outcome.problems += [f"promised and absent: {file}" for file in promises(path, home) if not file.exists()]
    return outcome


def faults(executed: Path) -> list[str]:
    """What is wrong with an executed notebook: code cells that did not run, and error outputs."""
    found = []
    for i, cell in enumerate(nbformat.read(executed, as_version=4).cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            found.append(f"cell {i} did not run")
        found += [
            f"cell {i}: {output.ename}: {output.evalue}" for output in cell.outputs if output.output_type == "error"
        ]
    return found


@contextlib.contextmanager
def watch(outcome: Outcome, limit: float) -> Iterator[None]:
    """Samples the memory of this process's children, and kills them when the time is up."""
    over = threading.Event()
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def look() -> None:
        deadline = time.monotonic() + limit
        while not over.wait(0.2):
            children = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
            total = 0
            for child in children:
                with contextlib.suppress(psutil.Error):  # gone between the listing and the look
                    total += child.memory_info().rss
            outcome.peak_bytes = max(outcome.peak_bytes, total)
            if time.monotonic() > deadline:
                outcome.problems.append(f"stopped after {limit:.0f} s, its time limit")
                for child in children:
                    with contextlib.suppress(psutil.Error):
                        child.kill()
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["epochs=3", "name=main"]` -> `{"epochs": 3, "name": "main"}`. Raises BloodcellError for what is no pair."""
    settings = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise BloodcellError(f"'{pair}' is no setting: write name=value.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings
