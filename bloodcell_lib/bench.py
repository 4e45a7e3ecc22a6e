"""`bloodcell bench`: which comparisons are made, the file that keeps every lap of them, and their tables."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from bloodcell_lib import bench_data, bench_train, drawn_folder, machine, paths, plans
from bloodcell_lib.bench_train import MAIN, Say
from bloodcell_lib.cells import NAMES
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.timings import Comparison

FORMAT = 1
CROP = plans.profile("cpu").crop  # pixels
SMALLEST = 5 * len(NAMES)  # images that can be split


@dataclass(frozen=True)
class Budget:
    """How much is measured. networks: (name, pixels, steps a lap) of the bare step. pipelines: pixels and files of the
    comparison with other pipelines. switches: pixels, steps a lap, and whether each switch is tried alone too: all
    contenders are in memory at once. loading, predicting: pixels and images a lap; cropping: pixels.
    """

    repetitions: int
    networks: tuple[tuple[str, int, int], ...]
    pipelines: tuple[tuple[int, int], ...]
    switches: tuple[tuple[int, int, bool], ...]
    compiled: bool
    loading: tuple[int, int]
    cropping: int
    predicting: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    growth_pixels: int = 64


NETWORKS = (MAIN, "efficientnet_lite", "simple_cnn", "resnet18")
BUDGETS = {
    # Two cores do all of it in about a quarter of an hour.
    "cpu": Budget(
        repetitions=3,
        networks=((MAIN, 96, 4), (MAIN, 112, 4), *((name, 224, 2) for name in NETWORKS)),
        pipelines=((96, 160), (224, 64)),
        switches=((96, 4, True), (224, 2, False)),
        compiled=True,
        loading=(224, 400),
        cropping=96,
        predicting=((96, 128), (224, 64)),
        sizes=(1000, 4200),
    ),
    "cuda": Budget(
        repetitions=5,
        networks=((MAIN, 96, 80), *((name, 224, 80) for name in NETWORKS)),
        pipelines=((96, 2560), (224, 2560)),
        switches=((96, 80, True), (224, 80, True)),
        compiled=True,
        loading=(224, 2560),
        cropping=96,
        predicting=((96, 6400), (224, 6400)),
        sizes=(1000, 4200, 17092),
    ),
    # Whether all of it works; such laps are too short to tell anything else.
    "quick": Budget(
        repetitions=2,
        networks=(("efficientnet_lite", 32, 2),),
        pipelines=((32, 32),),
        switches=((32, 1, True),),
        compiled=False,
        loading=(32, 32),
        cropping=32,
        predicting=((32, 64),),
        sizes=(40, 80),
        growth_pixels=32,
    ),
}


CHOICES = ("Input pipelines", "Switches", "Prediction", "Loading")  # comparisons of ways to do one thing

Part = Callable[[Budget, str, Say], dict[str, list[Comparison]]]


def train(budget: Budget, device: str, say: Say) -> dict[str, list[Comparison]]:
    """The trainer against the bare step, and against other pipelines."""
    turns = budget.repetitions
    bare = [bench_train.against_bare_step(*row, turns, device, say) for row in budget.networks]
    piped = []
    for pixels, files in budget.pipelines:
        with drawn(files, say) as folder:
            piped.append(bench_train.against_pipelines(folder, pixels, folder / "cache", turns, device, say))
    return {"Training loop": bare, "Input pipelines": piped}


def switches(budget: Budget, device: str, say: Say) -> dict[str, list[Comparison]]:
    """The training step switch by switch."""
    turns, compiled = budget.repetitions, budget.compiled
    rows = [
        bench_train.switch_by_switch(pixels, steps, turns, device, compiled, alone, say)
        for pixels, steps, alone in budget.switches
    ]
    return {"Switches": rows}


def predict(budget: Budget, device: str, say: Say) -> dict[str, list[Comparison]]:
    """The network's forward pass."""
    return {"Prediction": [bench_data.predicting(*row, budget.repetitions, device, say) for row in budget.predicting]}


def load(budget: Budget, device: str, say: Say) -> dict[str, list[Comparison]]:
    """Reading images."""
    pixels, files = budget.loading
    with drawn(files, say) as folder:
        loaded = bench_data.loading(folder, pixels, budget.repetitions, say)
        cropped = bench_data.cropping(folder, budget.cropping, CROP, budget.repetitions, say)
        return {"Loading": [loaded, cropped]}


def growth(budget: Budget, device: str, say: Say) -> dict[str, list[Comparison]]:
    """What more images cost."""
    return {
        f"Growth, {budget.growth_pixels} pixels": bench_data.growth(budget.sizes, budget.growth_pixels, device, say)
    }


PARTS: dict[str, Part] = {"train": train, "switches": switches, "predict": predict, "load": load, "growth": growth}


@contextlib.contextmanager
def drawn(files: int, say: Say) -> Iterator[Path]:
    """A folder of drawn cells as large as real ones, 360 x 363 pixels, so that anybody can repeat the comparison."""
    say(f"drawing {files} cells")
    with tempfile.TemporaryDirectory(prefix="bloodcell-bench-") as home:
        yield drawn_folder.write(Path(home) / "cells", per_class=max(1, files // len(NAMES)), test=0)


def device_name(given: str | None) -> str:
    """`cpu` or `cuda`: as given, else the GPU where there is one. Raises BloodcellError for a GPU by its number."""
    device = torch.device(given or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.index:
        raise BloodcellError(f"The first GPU is measured, not {given}: set CUDA_VISIBLE_DEVICES={device.index}.")
    return device.type


def budget(name: str, repetitions: int = 0, sizes: str = "") -> Budget:
    """The budget called `name`, with repetitions and sizes (numbers with commas between) changed where given.

    Raises BloodcellError for sizes that are no numbers, or too small for eight classes.
    """
    chosen = BUDGETS[name]
    if repetitions:
        chosen = replace(chosen, repetitions=repetitions)
    if sizes:
        try:
            numbers = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            numbers = (0,)
        if min(numbers) < SMALLEST:
            raise BloodcellError(f"--sizes {sizes} is no list of numbers from {SMALLEST} on: write 1000,4200.")
        chosen = replace(chosen, sizes=numbers)
    return chosen


def say(line: str) -> None:
    """Tells on stderr what is being measured, in one line that renews itself where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)


# The file


def run(part: str, budget: Budget, device: str, say: Say) -> dict[str, Any]:
    """Measures one part; the results hold its machine, commit and time."""
    began, commit = machine.now(), machine.commit()
    groups = PARTS[part](budget, device, say)
    made = {
        "machine": describe(device),
        "commit": commit,
        "started": began,
        "ended": machine.now(),
        "budget": asdict(budget),
        "groups": {title: [table.to_json() for table in tables] for title, tables in groups.items()},
    }
    return {"format": FORMAT, "parts": {part: made}}


def together(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The parts of both, those measured anew in place of the old."""
    parts = before.get("parts", {}) | new["parts"]
    return {"format": FORMAT, "parts": {name: parts[name] for name in PARTS if name in parts}}


def describe(device: str) -> dict[str, Any]:
    """The machine, its load included, which tells how quiet it was."""
    return {
        **machine.describe_machine(torch.device(device)),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load": [round(value, 2) for value in psutil.getloadavg()],
    }


def slug(device: str) -> str:
    """A short name for the machine: `cpu-2` by its threads, `h200` by its GPU."""
    if device == "cpu":
        return f"cpu-{torch.get_num_threads()}"
    name = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ")
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def file(folder: Path, device: str) -> Path:
    """Where the results of this machine lie in `folder`."""
    return folder / f"bench-{slug(device)}.json"


def read(path: Path) -> dict[str, Any]:
    """The results in `path`, {} if there is no such file. Raises BloodcellError for what is no such file."""
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["format"] != FORMAT:
            raise BloodcellError(f"{path} has format {results['format']}: this version reads format {FORMAT}.")
        markdown(results)
        return results
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BloodcellError(f"{path} is no whole file of results: remove it and measure again.") from error


def write(path: Path, results: dict[str, Any]) -> None:
    """Writes the file, whole or not at all."""
    with paths.write_whole(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")


# The tables


def markdown(results: dict[str, Any]) -> str:
    """Every comparison as a Markdown table; without results, a sentence that says so."""
    if not results.get("parts"):
        return "No speed is recorded yet: `bloodcell bench --publish` measures and records it.\n"
    lines = []
    for part in results["parts"].values():
        for title, tables in part["groups"].items():
            lines += [f"**{title}** ({where(part)})", ""]
            for row in tables:
                lines += [*table(row), ""]
    return "\n".join(lines)


def summary(results: dict[str, Any]) -> str:
    """Every comparison in one line of a Markdown list, without rates and memory."""
    if not results.get("parts"):
        return markdown(results)
    lines = []
    for part in results["parts"].values():
        for title, tables in part["groups"].items():
            lines += [f"- **{title}** ({where(part)}):"]
            for row in tables:
                told = verdict(row) if title in CHOICES else ratios(row)
                lines.append(f"  - {row['title']}. {told}")
    return "\n".join(lines)


def ratios(row: dict[str, Any]) -> str:
    """What each contender reaches of the base."""
    found = [f"{name} {ratio['median']:.2f}" for name, ratio in row["ratio"].items() if name != row["base"]]
    return f"Of *{row['base']}*: {'; '.join(found) or 'nothing else was measured'}."


def where(part: dict[str, Any]) -> str:
    """Device, library, commit and day of a part."""
    info = part["machine"]
    return f"{info['device']}, torch {info['torch']}, commit {part['commit'] or 'unknown'}, {part['started'][:10]}"


def table(row: dict[str, Any]) -> list[str]:
    """The lines of one comparison's table."""
    lines = [
        f"| {row['title']} | {row['unit']} | ratio (lowest to highest) | memory, its own | |",
        "|---|--:|--:|--:|---|",
    ]
    for name in dict.fromkeys([*row["rates"], *row["notes"]]):
        note = row["notes"].get(name, "")
        if name not in row["rates"]:
            lines.append(f"| {name} | | | | {note} |")
            continue
        memory, own = (row[key][name] / 2**20 for key in ("memory", "own_memory"))
        rate = statistics.median(row["rates"][name])
        ratio = row["ratio"].get(name)
        spread = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
        shown = "1" if name == row["base"] else spread
        lines.append(f"| {name} | {rate:,.0f} | {shown} | {memory:,.0f}, {own:,.0f} MiB | {note} |")
    return lines


def verdict(row: dict[str, Any]) -> str:
    """What paid against the base and what did not: by more than 5 % in the median, and by anything in every turn."""
    sorts: dict[str, list[str]] = {"Paid": [], "No difference": [], "Cost": []}
    for name, ratio in row["ratio"].items():
        gains, loses = ratio["median"] > 1.05 and ratio["low"] > 1, ratio["median"] < 0.95 and ratio["high"] < 1
        if name != row["base"]:
            sorts["Paid" if gains else "Cost" if loses else "No difference"].append(f"{name} {ratio['median']:.2f}")
    found = [f"{sort}: {'; '.join(names)}." for sort, names in sorts.items() if names]
    return " ".join([f"Against *{row['base']}*.", *(found or ["Nothing else was measured."])])
