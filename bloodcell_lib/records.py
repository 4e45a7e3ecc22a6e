"""What is left of a run: a folder with `record.json`, the validation predictions and, on this machine, the weights."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from bloodcell_lib.data import SYNTHETIC
from bloodcell_lib.errors import BloodcellError

FORMAT = 1
ANALYSES = "analyses"  # the folder of a profile that holds what `analysis` leaves
WEIGHTS = "weights.safetensors"  # in a run's folder on the machine that made it


@dataclass(frozen=True)
class Predictions:
    """Names (n), labels int64 (n,), probabilities float32 (n, 8)."""

    names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class, int64 (n,)."""
        return self.probabilities.argmax(1)


@dataclass(frozen=True)
class Record:
    """What is left of one run: `record.json` parsed as `info`, and the validation predictions beside it."""

    folder: Path
    experiment: str
    seed: int
    profile: str
    info: dict[str, Any]

    def validation(self) -> Predictions:
        """The final epoch's predictions. Raises BloodcellError where the run held no images out."""
        path = self.folder / "validation.npz"
        if not self.info["data"]["validation"]:
            raise BloodcellError(f"{self.folder} has no validation predictions: the run held no images out.")
        try:
            with np.load(path) as saved:
                probabilities = saved["probabilities"].astype(np.float32)
                return Predictions(tuple(saved["names"].tolist()), saved["labels"].astype(np.int64), probabilities)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BloodcellError(f"{path} is missing or damaged: remove its folder and run it again.") from error

    def accuracy(self, epoch: str = "final") -> float | None:
        """Of the "final" or the "best" epoch; None without validation images. Exact, where float32 was recorded."""
        share, images = self.info[f"{epoch}_validation_accuracy"], self.info["data"]["validation"]
        return None if share is None else round(share * images) / images

    @property
    def has_weights(self) -> bool:
        """Whether the network is on this machine."""
        return (self.folder / WEIGHTS).exists()

    def weights(self) -> dict[str, Tensor]:
        """The final epoch's. Raises BloodcellError if they are damaged or not on this machine."""
        path = self.folder / WEIGHTS
        try:
            return safetensors.torch.load_file(path)
        except FileNotFoundError as error:
            raise BloodcellError(
                f"No weights in {self.folder}: published records have none; one of this machine's is to be removed and "
                "made again."
            ) from error
        except Exception as error:  # safetensors raises kinds of its own
            raise BloodcellError(f"{path} is damaged: remove its folder and run it again.") from error


def in_half(probabilities: np.ndarray) -> np.ndarray:
    """float32 (n, 8) -> float16 with the same winner in each row, where rounding alone might make two equal."""
    half = probabilities.astype(np.float16)
    winner = probabilities.argmax(1)
    tied = np.flatnonzero(half.argmax(1) != winner)
    half[tied, winner[tied]] = np.nextafter(half[tied].max(1), np.float16(2))
    return half


def load_record(folder: Path) -> Record:
    """The record in `folder`. Raises BloodcellError if it is damaged or of an unknown format."""
    path = folder / "record.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise BloodcellError(f"{path} has format {info['format']}: this version reads format {FORMAT}.")
        for key in ("model", "history"):
            info[key]
        for part, keys in {
            "data": ("source", "fingerprint", "validation"),
            "config": ("pixels", "crop", "part"),
        }.items():
            for key in keys:
                info[part][key]
        if not all(isinstance(info[key], int) for key in ("order", "seed")):  # by which records are sorted
            raise TypeError
        return Record(folder, info["experiment"], info["seed"], info["profile"], info)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BloodcellError(f"{path} is not a whole record: remove its folder and run it again.") from error


def load_records(folder: Path) -> list[Record]:
    """All records in `<results>/<profile>`, by experiment and seed; [] if there is no such folder."""
    found = [load_record(path.parent) for path in Path(folder).glob("*/seed*/record.json")]
    order: dict[str, int] = {}  # the earliest: a row may have had another place in the table for a later seed
    for record in found:
        order[record.experiment] = min(record.info["order"], order.get(record.experiment, record.info["order"]))
    return sorted(found, key=lambda record: (order[record.experiment], record.experiment, record.seed))


def is_demo(profile: str) -> bool:
    """Whether runs under this profile, the demo or its study, give no results."""
    return profile.split("/")[0] == "demo"


def stamp_of(source: str, profile: str) -> str | None:
    """Words for figures that show no results: "synthetic demo", or "demo" on real images; None for a true study."""
    if source == SYNTHETIC:
        return "synthetic demo"
    return "demo" if is_demo(profile) else None


def stamp(records: list[Record]) -> str | None:
    """`stamp_of` for several runs: that of drawn cells if any run saw them."""
    words = {stamp_of(record.info["data"]["source"], record.profile) for record in records} - {None}
    return max(words, key=len, default=None)
