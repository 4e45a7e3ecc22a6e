"""An analysis of networks that are trained: what it is given, and what it leaves.

Each leaves one file, `<results>/<profile>/analyses/<name>.json`: whose runs and which images it saw, on which machine
and with which code, and its result. Figures, tables and sentences come from these files, as from the records of runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bloodcell_lib import earlier, machine, models, paths, plans, views
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.records import ANALYSES, WEIGHTS, Record, load_records
from bloodcell_lib.tasks import Task

FORMAT = 1
SEEN = ("part", "pixels", "crop")  # what of a configuration says what a run saw
PHOTOGRAPH = 224  # pixels of a side at which whole photographs are read, which the profile `full` reads too


@dataclass(frozen=True)
class Subject:
    """The runs of one profile on this machine, with their weights, and the images that they were made on.

    experiment: whose runs are analysed. folder: where the images come from, for what needs whole photographs.
    """

    profile: str
    cells: CellImages
    experiment: str = "main"
    device: str = "cpu"
    runs: Path = paths.RUNS
    folder: Path | None = None

    @cached_property
    def records(self) -> list[Record]:
        """The records of `experiment`, by seed. Raises BloodcellError if there is none, or they saw other images."""
        found = self.of(self.experiment)
        if not found:
            raise BloodcellError(
                f"No run of {self.experiment} in {self.runs / self.profile}: make one with "
                f"`bloodcell train {self.experiment.split('+')[0]} --profile {self.profile}`."
            )
        return found

    def of(self, experiment: str) -> list[Record]:
        """The records of another experiment of the profile, by seed; [] where it has none."""
        found = [record for record in load_records(self.runs / self.profile) if record.experiment == experiment]
        for record in found:
            if record.info["data"]["fingerprint"] != self.cells.fingerprint:
                raise BloodcellError(f"{record.folder} was recorded on other images than those given: give the same.")
        return found

    def peers(self, experiment: str, keys: Sequence[str] = SEEN) -> list[Record]:
        """Those of `of` that held the same images out as `records` and saw the same of them, as these keys tell."""
        return [record for record in self.of(experiment) if _alike(record, self.records[0], keys)]

    def network(self, record: Record) -> nn.Module:
        """The trained network of a run, on the device, ready to predict: uint8 / 255 in, logits out."""
        return load_network(record).to(self.device, memory_format=torch.channels_last).eval()

    def held_out(self, record: Record) -> CellImages:
        """The images that the run validated on. Raises BloodcellError where it held none out, or others than it would
        today, some of which it was then trained on."""
        train, held_out = views.divide(self.cells, part := record.info["config"]["part"])
        if held_out is None:
            raise BloodcellError(f"{record.folder} held no images out: analyse a run that did.")
        # Of suspects that were left out only the run itself knows.
        known = record.info["data"]["split_sha256"]
        if not part.startswith("clean") and known != views.split_sha256(train, held_out):
            raise BloodcellError(f"{record.folder} held other images out: move it away and make it again.")
        return held_out

    def photographs(self, held_out: CellImages, pixels: int = PHOTOGRAPH) -> CellImages:
        """The same images whole, at so many pixels. Raises BloodcellError without a folder to read them from."""
        if self.folder is None:
            raise BloodcellError("Whole photographs are wanted here: give the folder that holds train/.")
        whole = views.load_images(self.profile, self.folder, True, progress=False, view=(pixels, None))
        at = {key: i for i, key in enumerate(zip(whole.labels.tolist(), whole.names))}  # classes may share names
        return whole.subset(at[key] for key in zip(held_out.labels.tolist(), held_out.names))

    def whole_folds(self) -> list[list[Record]]:
        """The runs of the five folds for each seed that has all of them, the lowest first."""
        by_seed: dict[int, list[Record]] = {}
        folds = plans.FOLDS.get(self.experiment, ())
        for name in folds:
            for record in self.of(name):
                by_seed.setdefault(record.seed, []).append(record)
        return [runs for _, runs in sorted(by_seed.items()) if len(runs) == len(folds)]

    def fold_runs(self) -> list[Record]:
        """The five folds with the lowest seed that has all of them, else the first run of `experiment` by itself."""
        return next(iter(self.whole_folds()), self.records[:1])

    def folds(self) -> list[tuple[Record, CellImages]]:
        """The runs of `fold_runs`, which together predict images none of them was trained on, with these images."""
        return [(record, self.held_out(record)) for record in self.fold_runs()]

    def earlier(self, record: Record) -> list[Record]:
        """The runs whose networks this one went on training, which saw no other images, nor them in another size or
        crop; the first one's first."""
        if record.experiment not in plans.EXPERIMENTS:  # changed by hand
            return []
        before = earlier.before(Task(record.experiment, record.seed, self.profile))
        runs = self.of(before.experiment) if before else []
        found = [run for run in runs if run.seed == record.seed and _alike(run, record)]
        return [*self.earlier(found[0]), found[0]] if found else []

    def judges(self) -> list[tuple[Record, CellImages]]:
        """Runs with images that they were not trained on: the five folds where they are recorded, which together see
        every image once, else every seed of `experiment` with the same validation images."""
        folds = self.folds()
        return folds if len(folds) > 1 else [(record, self.held_out(record)) for record in self.records]


def _alike(one: Record, other: Record, keys: Sequence[str] = SEEN) -> bool:
    """Whether two runs held the same images out and saw the same of them, as these keys of their configuration tell."""
    a, b = one.info, other.info
    divided = a["data"]["split_sha256"] == b["data"]["split_sha256"]
    return divided and all(a["config"][key] == b["config"][key] for key in keys)


def load_network(record: Record) -> nn.Module:
    """The network of a run with its weights. Raises BloodcellError if they are not on this machine."""
    try:
        network = models.build(ModelConfig(**record.info["config"]["model"]))
    except TypeError as error:  # a field that is not known here
        raise BloodcellError(f"{record.folder} was made by another version of the code: make it again.") from error
    try:
        network.load_state_dict(record.weights())
    except RuntimeError as error:  # torch's for those of another network
        raise BloodcellError(f"{record.folder / WEIGHTS} is damaged: remove its folder and run it again.") from error
    return network


@torch.no_grad()
def logits(network: nn.Module, images: Tensor, batch_size: int = 128) -> Tensor:
    """float32 (n, 8) on the CPU, for uint8 or float (in [0, 1]) images (n, 3, H, W), batch by batch on the network's
    device."""
    device = next(network.parameters()).device
    return torch.cat([network(as_input(x, device)).float().cpu() for x in images.split(batch_size)])


@torch.no_grad()
def outputs(network: nn.Module, images: Tensor, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """The features that the last linear layer is given, float32 (n, width) on the CPU, and the `logits`.

    width: 80 of the main network, 112 of EfficientNetLite, 512 of ResNet-18 and SimpleCNN.
    """
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        given = logits(network, images, batch_size)
    finally:
        handle.remove()
    return torch.cat(seen), given


def as_input(images: Tensor, device: torch.device | str) -> Tensor:
    """uint8 -> float in [0, 1], on the device, channels last; floats only move."""
    x = images.to(device)
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    return x.contiguous(memory_format=torch.channels_last)


def sample(labels: np.ndarray, limit: int | None, seed: int = 0) -> np.ndarray:
    """Indices, sorted, of at most `limit` images, of each class as many as there are or can be had; None takes all."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = pd.Series(labels[order]).groupby(labels[order]).cumcount().to_numpy()  # first of each class, second ...
    return np.sort(order[np.argsort(turn, kind="stable")[:limit]])


def record_analysis(name: str, subject: Subject, run: Callable[[Subject], dict[str, Any]]) -> Path:
    """Runs an analysis and writes its file whole; gives the path. NaNs become null, arrays lists.

    The file of another experiment's runs than `main` says so in its name: `trust_best.json`.
    """
    started = machine.now()
    result = run(subject)
    content = {
        "format": FORMAT,
        "analysis": name,
        "profile": subject.profile,
        "experiment": subject.experiment,
        "data": {
            "source": subject.cells.source,
            "fingerprint": subject.cells.fingerprint,
            "images": len(subject.cells),
        },
        "machine": machine.describe_machine(torch.device(subject.device)),
        "commit": machine.commit(),
        "started": started,
        "ended": machine.now(),
        "result": _plain(result),
    }
    target = subject.runs / subject.profile / ANALYSES / f"{name}{_ending(subject.experiment)}.json"
    with paths.write_whole(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return target


def load_analyses(folder: Path) -> dict[str, dict[str, Any]]:
    """The analyses in `<results>/<profile>`, whole files by the name of the file; {} if there are none."""
    found = {}
    for path in sorted((Path(folder) / ANALYSES).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise BloodcellError(f"{path} has format {content['format']}: this version reads format {FORMAT}.")
            content["result"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BloodcellError(f"{path} is not a whole analysis: remove it and make it again.") from error
        found[path.stem] = content
    return found


def of_experiment(found: dict[str, dict[str, Any]], experiment: str) -> dict[str, dict[str, Any]]:
    """Those of `found` that tell of an experiment's runs, by the name of the analysis."""
    ending = _ending(experiment)
    return {name.removesuffix(ending): one for name, one in found.items() if one["experiment"] == experiment}


def _ending(experiment: str) -> str:
    return "" if experiment == "main" else f"_{experiment}"


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(inside) for key, inside in value.items()}
    if isinstance(value, (np.ndarray, Tensor)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, Iterator)):
        return [_plain(inside) for inside in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
