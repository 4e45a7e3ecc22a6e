"""Records to LaTeX macros: one for each number that the report prints, none of them typed there.

A number that no record gives is `DASH`. Sentences that depend on numbers come from `sentences`.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bloodcell_lib import evaluate, models, paths, plans
from bloodcell_lib.analysis import load_analyses
from bloodcell_lib.claims import claims_table
from bloodcell_lib.compare import study_table
from bloodcell_lib.latex import DASH, count, escape, join, number, plain
from bloodcell_lib.plans import EXPERIMENTS, STUDY, Profile
from bloodcell_lib.records import Predictions, Record, load_records
from bloodcell_lib.reference import CLAIMS
from bloodcell_lib.shelf import counted, full_beside
from bloodcell_lib.travel import ALONE

REFERENCE_PIXELS, REFERENCE_EPOCHS, REFERENCE_IMAGES = 224, 50, 640  # as the reference states them; 640: validation
LEVEL = r"95\,\%"  # of every interval, in `evaluate` and `compare`
NAMES = {
    "NameVgg": "VGG-16",
    "NameInception": "Inception-v3",
    "NameResnet": "ResNet-18",
    "NameResnetLarge": "ResNet-50",
    "NameDensenet": "DenseNet-121",
    "NameEfficientnet": "EfficientNet-B4",
}
LETTERS = {"resnet18": "resnet", "cv_fold": "fold"}  # TeX has no digits in names of macros
DIGITS = dict(zip("0123456789", ["Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"]))


@dataclass(frozen=True)
class Published:
    """A number that others published: what the macro `\\Published<name>` prints, and the entry that is cited for it."""

    name: str
    text: str
    cite: str
    what: str


PUBLISHED = (
    Published("PbcImages", "17,092", "acevedo2020", "images in the PBC data set"),
    Published("AcevedoVgg", "96", "acevedo2019", "PBC, VGG-16 fine-tuned, %"),
    Published("AcevedoInception", "95", "acevedo2019", "PBC, Inception-v3 fine-tuned, %"),
    Published("AcevedoSvmLow", "86", "acevedo2019", "PBC, VGG-16 features and a support vector machine, %"),
    Published("AcevedoSvmHigh", "90", "acevedo2019", "PBC, Inception-v3 features and a support vector machine, %"),
    Published("BloodmnistTrain", "11,959", "yang2023", "training images of BloodMNIST"),
    Published("BloodmnistResnet", "95.8", "yang2023", "BloodMNIST at 28 pixels, ResNet-18 from scratch, %"),
    Published("BloodmnistAutoml", "96.6", "yang2023", "BloodMNIST, Google AutoML Vision, %"),
    Published("DoerrichDensenet", "99.02", "doerrich2025", "BloodMNIST at 224 pixels, DenseNet-121 pre-trained, %"),
    Published("DoerrichDensenetStd", "0.14", "doerrich2025", "the same, standard deviation over seeds, points"),
    Published("DoerrichEfficientnet", "97.40", "doerrich2025", "BloodMNIST at 224 pixels, EfficientNet-B4, %"),
    Published("TsutsuiSame", "98.5", "tsutsui2023", "Raabin to Raabin (test A), ResNet-50 with batch norm, %"),
    Published("TsutsuiOther", "23.1", "tsutsui2023", "Raabin to LISC, ResNet-50 with batch norm, %"),
    Published("TsutsuiGroupnorm", "73.1", "tsutsui2023", "Raabin to LISC, ResNet-50 with group norm, %"),
)


@dataclass(frozen=True)
class Study:
    """The records of one profile and what follows from them, each computed once; the analyses of its networks.

    full: what is recorded under `full` where the profile is another, which tests the claims that its own cannot.
    """

    records: list[Record]
    profile: str
    analyses: dict[str, Any] = field(default_factory=dict)
    full: list[Record] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        profile: str,
        analyses: dict[str, Any] | None = None,
        full: Sequence[Record] = (),
    ) -> Study:
        """Leaves out runs with a recipe changed by hand."""
        ours, large = ([record for record in some if record.experiment in EXPERIMENTS] for some in (records, full))
        return cls(ours, profile, analyses or {}, large)

    @classmethod
    def read(cls, results: Path, profile: str) -> Study:
        """What lies in `results/<profile>`."""
        folder = Path(results) / profile
        return cls.of(load_records(folder), profile, load_analyses(folder), full_beside(folder, profile))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Of `compare.study_table`."""
        return study_table(self.records)

    @cached_property
    def claims(self) -> pd.DataFrame:
        """Of `claims.claims_table`."""
        return claims_table(self.records, self.full)

    @cached_property
    def large(self) -> Study:
        """What is recorded under `full` beside it, as a study of its own."""
        return Study(self.full, "full")

    @property
    def counted(self) -> tuple[int, int]:
        """How many runs of the profile's study are recorded, and how many it plans."""
        return counted(self.records, self.budget)

    @cached_property
    def pooled(self) -> Predictions | None:
        """The main model's predictions, all seeds."""
        return self.pooled_of("main")

    def pooled_of(self, name: str) -> Predictions | None:
        """The predictions of one experiment, all seeds; None where none is recorded."""
        runs = evaluate.validated(self.runs(name))
        return evaluate.pool(runs) if runs else None

    @property
    def devices(self) -> list[str]:
        """On what the runs were made; an older record says "1 threads"."""
        return list(
            dict.fromkeys(r.info["machine"]["device"].replace("(1 threads)", "(1 thread)") for r in self.records)
        )

    @property
    def versions(self) -> list[str]:
        """With which versions of PyTorch."""
        return list(dict.fromkeys(record.info["machine"]["torch"] for record in self.records))

    @property
    def budget(self) -> Profile:
        """The profile's own settings, which say what is planned where nothing is recorded."""
        return plans.profile(self.profile)

    def runs(self, name: str) -> list[Record]:
        """The records of one experiment."""
        return [record for record in self.records if record.experiment == name]

    def folds(self, recipe: str) -> list[list[Record]]:
        """The records of each fold of a cross-validated recipe, the split first."""
        return [self.runs(name) for name in plans.FOLDS[recipe]]

    def stages(self, name: str) -> list[tuple[int, int]]:
        """The epochs of a recipe and of those that it goes on after, the first one's first, each with the pictures that
        it shows of an image."""
        trains = [self.runs(one)[0].info["config"]["train"] for one in (*self.ancestors(name), name)]
        return [(train["epochs"], 1 + train.get("copies", 0)) for train in trains]

    def ancestors(self, name: str) -> list[str]:
        """The recorded recipes whose networks this one went on training, the first one's first."""
        after = next((record.info["config"]["train"].get("after", "") for record in self.runs(name)), "")
        return [*self.ancestors(after), after] if self.runs(after) else []

    def seeds(self, name: str) -> tuple[int, ...]:
        """The seeds with which an experiment is recorded."""
        return tuple(record.seed for record in self.runs(name))

    def row(self, name: str) -> dict[str, Any]:
        """One row of the table; {} where the experiment is not recorded."""
        return dict(self.table.loc[name]) if name in self.table.index else {}

    def main(self, *keys: str) -> Any:
        """A value in the first record of the main experiment, by its keys; None where there is none."""
        value: Any = next((record.info for record in self.runs("main")), {})
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def macros(study: Study, stamp: str) -> dict[str, str]:
    """Name without backslash -> LaTeX text, for every number of the report, and more of the claims' than it prints."""
    found = {"Stamp": escape(stamp), "Level": LEVEL, "TravelGoal": number(100 * ALONE), **NAMES}
    found |= {f"Published{row.name}": row.text for row in PUBLISHED}
    found |= _data(study) | _recipe(study) | _measured(study) | _claims(study)
    return found


def _data(study: Study) -> dict[str, str]:
    """The data set as the manifest lists it, and as the main run saw it."""
    rows = []
    if paths.MANIFEST.is_file():
        with paths.MANIFEST.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    labelled = [row for row in rows if row["part"] == "train"]
    sizes = Counter((row["width"], row["height"]) for row in rows)
    width, height = sizes.most_common(1)[0][0] if sizes else (None, None)
    classes = Counter(row["class"] for row in labelled)
    return {
        "LabelledImages": count(len(labelled) or None),
        "TestImages": count(len(rows) - len(labelled) or None),
        "ImagesPerClass": count(min(classes.values(), default=None)),
        "ImageWidth": count(width and int(width)),
        "ImageHeight": count(height and int(height)),
        "UsualSizeShare": number(100 * max(sizes.values()) / len(rows) if rows else None, 1),
        "IdenticalPairs": count(len(labelled) - len({row["sha256"] for row in labelled}) if rows else None),
        "TrainImages": count(study.main("data", "train")),
        "ValidationImages": count(study.main("data", "validation")),
    }


def _recipe(study: Study) -> dict[str, str]:
    """The main run's configuration, and where and how long the study's runs were made."""
    augment, model = (study.main("config", part) or {} for part in ("augment", "model"))
    walls = [record.info["wall_seconds"] for record in study.runs("main")]
    grid = Study([record for record in study.records if record.experiment in STUDY], study.profile)
    return {
        "ScaleLow": plain((augment.get("scale") or [None])[0]),
        "ScaleHigh": plain((augment.get("scale") or [None])[-1]),
        "Translation": number(_times(100, augment.get("translate"))),
        **{camel(key): plain(augment.get(key)) for key in ("rotation", "brightness", "hue")},
        "DeepParameters": count(models.parameters_of("deep_efficientnet")),
        "DescribedParameters": count(models.parameters_of("as_described")),
        "Dropout": plain(model.get("dropout")),
        "StochasticDepth": plain(model.get("stochastic_depth")),
        "Planned": count(len(STUDY)),
        "DeviceName": escape(join(grid.devices) or DASH),
        "TorchVersion": escape(join(grid.versions) or DASH),
        "CodeCommit": escape(study.main("commit") or DASH),
        "MainMinutes": number(np.mean(walls) / 60 if walls else None, 1),
        "StudyHours": number(sum(r.info["wall_seconds"] for r in grid.records) / 3600 if grid.records else None, 1),
    }


def _measured(study: Study) -> dict[str, str]:
    """What stands in no table and no sentence."""
    decayed, images = _decayed(study), study.main("data", "validation")
    return {
        "MainStd": number(_times(100, study.row("main").get("std")), 2),
        "DecayShare": plain(decayed and float(f"{decayed:.0e}")),
        "OneImagePoints": number(100 / images if images else None, 2),
    }


def _claims(study: Study) -> dict[str, str]:
    """What the reference states, and what its other files say."""
    found = {}
    for key, row in study.claims.iterrows():
        prefix = "Claim" + camel(str(key))
        found[f"{prefix}Stated"] = escape(row["stated"])
        found[f"{prefix}Elsewhere"] = escape(without_source(row["elsewhere"]))
    # The stated accuracy as a count of its validation images, and what so many images can tell.
    stated = next(claim.value for claim in CLAIMS if claim.key == "main_accuracy") / 100
    correct = round(stated * REFERENCE_IMAGES)
    low, high = evaluate.wilson(correct, REFERENCE_IMAGES)
    return found | {
        "ReferenceImages": count(REFERENCE_IMAGES),
        "ReferenceCorrect": count(correct),
        "ReferenceLow": number(100 * low, 1),
        "ReferenceHigh": number(100 * high, 1),
    }


def camel(name: str) -> str:
    """`reg_label_smoothing` -> `RegLabelSmoothing`; `cv_fold0` -> `FoldZero`."""
    for long, short in LETTERS.items():
        name = name.replace(long, short)
    words = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return re.sub(r"\d", lambda digit: DIGITS[digit[0]], words)


def without_source(text: str) -> str:
    """Drops the file names in brackets at a claim's end."""
    return re.sub(r"\s*\([^()]*(\.md|\.csv|\.json|notebook)[^()]*\)$", "", text)


def _decayed(study: Study) -> float | None:
    """The share by which decoupled decay alone shrinks a weight in a run of main: 1 - exp(-sum of rate x decay)."""
    config, history = study.main("config"), study.main("history")
    if not config:
        return None
    steps = math.ceil(study.main("data", "train") / config["train"]["batch_size"])
    rates = sum(row["learning_rate"] for row in history)
    return -math.expm1(-config["train"]["weight_decay"] * steps * rates)


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value
