"""What may be run: the study as a table of rows, and the budgets (profiles) that they are run under."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from bloodcell_lib.augment import NONE, AugmentConfig
from bloodcell_lib.cells import CELL_TYPES
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.recipe import STRIDE, TrainConfig
from bloodcell_lib.records import is_demo


@dataclass(frozen=True)
class Experiment:
    """One row of the study.

    part: "split" (the 80/20 split), "all" (no validation), "fold0" to "fold4"; "pair01" to "pair34" holds two folds
    out and trains on three; "clean0" to "clean4" is a fold whose training images with suspicious labels are left out;
    "without_<class>" is the split without one class on either side.
    epochs: at most so many, whatever the profile gives; 0 for no bound. seeds: the same, of its seeds.
    crop: side of the central square of a photograph, in its pixels, in place of the profile's; 0 for the whole.
    size, length: factors on the profile's side of an input and on its epochs.
    """

    name: str
    title: str
    group: str
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    part: str = "split"
    epochs: int = 0
    seeds: int = 0
    crop: int | None = None
    size: float = 1.0
    length: float = 1.0


@dataclass(frozen=True)
class Profile:
    """A budget: image size, central crop, epochs, seeds; `per_class` bounds the images used, None takes all.

    study: the profile under which the study runs, where its rows get less than the main run does.
    """

    name: str
    pixels: int
    crop: int | None
    epochs: int
    seeds: tuple[int, ...]
    per_class: int | None = None
    study: str | None = None

    def view(self, row: Experiment) -> tuple[int, int | None]:
        """What `row` sees of a photograph: the side of its input, and the side of the crop, None for the whole."""
        pixels = self.pixels if row.size == 1 else round(self.pixels * row.size / STRIDE) * STRIDE
        return pixels, self.crop if row.crop is None else row.crop or None

    @property
    def disposable(self) -> bool:
        """Whether its runs give no results: a demo, whose runs make way for one on other images."""
        return is_demo(self.name)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("demo", pixels=64, crop=200, epochs=22, seeds=(0,), study="demo/study"),
        Profile("demo/study", pixels=64, crop=200, epochs=3, seeds=(0,), per_class=40),
        # Two cores take the whole study in about five hours; the crop holds the nucleus of 99 white cells in 100.
        Profile("cpu", pixels=96, crop=240, epochs=20, seeds=(0, 1, 2)),
        Profile("full", pixels=224, crop=None, epochs=50, seeds=(0, 1, 2)),
    )
}

WITHOUT = "without_"  # before the class that a part leaves out

_NETWORK, _MAIN, _FLIPS = ModelConfig(), TrainConfig(), replace(NONE, flips=True)
_PLAIN = ModelConfig(dropout=0.0, stochastic_depth=0.0)
_LOOSE = TrainConfig(weight_decay=0.0, label_smoothing=0.0)
# Views that keep what a type is told by, size and colour; plain convolutions, which learn more an hour; and longer.
_BEST_NETWORK, _SYMMETRIES = ModelConfig("slim_resnet"), replace(_FLIPS, turns=True)
# What the reference gave its baselines: Adam at 1e-3, nothing else, 10 epochs.
_REFERENCE = TrainConfig(optimiser="adam", schedule="constant", weight_decay=0.0, label_smoothing=0.0, clip=0.0)


def _baseline(name: str, title: str) -> Experiment:
    return Experiment(name, title, "baseline", ModelConfig(name), _REFERENCE, epochs=10)


def _regularised(name: str, title: str, model: ModelConfig = _PLAIN, train: TrainConfig = _LOOSE) -> Experiment:
    return Experiment(f"reg_{name}", title, "regularisation", model, train)


def _lever(
    name: str,
    title: str,
    train: TrainConfig = _MAIN,
    model: ModelConfig = _NETWORK,
    view: dict[str, float] = {},  # noqa: B006
    **augment: Any,
) -> Experiment:
    """The main recipe with flips as its only augmentation, and one thing more; a seed is enough to screen it."""
    return Experiment(f"with_{name}", title, "lever", model, train, replace(_FLIPS, **augment), seeds=1, **view)


def _best(
    name: str,
    title: str,
    group: str,
    model: ModelConfig = _BEST_NETWORK,
    train: TrainConfig = _MAIN,
    part: str = "split",
    length: float = 1.5,
    seeds: int = 1,
    **augment: Any,
) -> Experiment:
    """The best recipe, whole, with one part of it less or with one more."""
    return Experiment(
        name, title, group, model, train, replace(_SYMMETRIES, **augment), part, seeds=seeds, length=length
    )


def _named(*rows: Experiment) -> dict[str, Experiment]:
    return {row.name: row for row in rows}


STUDY = _named(
    Experiment("main", "DeepEfficientNet", "main"),
    Experiment("final", "DeepEfficientNet, all images", "main", part="all"),
    _baseline("simple_cnn", "SimpleCNN"),
    _baseline("resnet18", "ResNet-18"),
    _baseline("efficientnet_lite", "EfficientNetLite"),
    Experiment("no_se", "No squeeze-and-excitation", "attention", ModelConfig(squeeze_excite=False)),
    _regularised("none", "No regularisation"),
    _regularised("dropout", "Dropout alone", ModelConfig(stochastic_depth=0.0)),
    _regularised("label_smoothing", "Label smoothing alone", train=TrainConfig(weight_decay=0.0)),
    _regularised("stochastic_depth", "Stochastic depth alone", ModelConfig(dropout=0.0)),
    _regularised("weight_decay", "Weight decay alone", train=TrainConfig(label_smoothing=0.0)),
    Experiment("lr_constant", "Constant rate", "schedule", train=TrainConfig(schedule="constant")),
    Experiment("lr_step", "Step decay", "schedule", train=TrainConfig(schedule="step")),
    Experiment("aug_none", "No augmentation", "augmentation", augment=NONE),
    Experiment("aug_flips", "Flips alone", "augmentation", augment=_FLIPS),
    Experiment(
        *("aug_flips_rotation", "Flips and rotation alone", "augmentation"), augment=replace(_FLIPS, rotation=30.0)
    ),
)
EXTRA = _named(
    *(
        Experiment(f"{row.name}_full", f"{row.title}, full recipe", "extra", row.model)
        for row in STUDY.values()
        if row.group == "baseline"
    ),
    Experiment("as_described", "Blocks as described", "extra", ModelConfig("as_described")),
    # The folds show what another split does; a seed each is enough for that.
    *(Experiment(f"cv_fold{k}", f"Fold {k + 1} of 5", "cv", part=f"fold{k}", seeds=1) for k in range(5)),
    Experiment("growing_images", "Images that grow", "speed", train=TrainConfig(start_size=0.5)),
    Experiment("finer_labels", "Finer labels", "labels", ModelConfig(finer=True)),
    # Remedies against other microscopes and stains.
    Experiment("group_norm", "Group norm", "robustness", ModelConfig(norm="group")),
    Experiment("stain_jitter", "Stain jitter", "robustness", augment=AugmentConfig(stain=0.4)),
    Experiment("grey_world", "Grey-world colours", "robustness", ModelConfig(grey_world=True)),
    # Networks that have never seen one of the classes; all eight together may cost three runs.
    *(
        Experiment(
            *(f"{WITHOUT}{cell.name}", f"Without {cell.title.lower()}s", "unknown"),
            part=WITHOUT + cell.name,
            epochs=8,
            seeds=1,
        )
        for cell in CELL_TYPES
    ),
    # What may do better than flips alone, one thing at a time.
    _lever("turns", "Flips and quarter turns", turns=True),
    _lever("free_rotation", "Flips and any rotation", rotation=180.0),
    _lever("scale", "Flips and scale", scale=(0.8, 1.25)),
    _lever("wide_scale", "Flips and scale from a half to 2.5", scale=(0.5, 2.5)),
    _lever("mild_colour", "Flips and mild colour", brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02),
    _lever("stain", "Flips and stain jitter", stain=0.2),
    _lever("mixup", "Mixup", TrainConfig(mixup=0.2)),
    _lever("cutmix", "CutMix", TrainConfig(cutmix=1.0)),
    _lever("average", "Averaged weights", TrainConfig(average=0.996)),
    _lever("warm", "Higher rate, warmed up, more decay", TrainConfig(learning_rate=2e-3, warmup=3, weight_decay=0.05)),
    _lever("sharpness", "Sharpness-aware steps", TrainConfig(sharpness=0.05)),
    _lever("small_batch", "Batches of 16", TrainConfig(batch_size=16)),
    _lever("growing", "Images that grow, twice as long", TrainConfig(start_size=0.5), view={"length": 2.0}),
    _lever("longer", "Twice as long", view={"length": 2.0}),
    _lever("close", "Central 200 pixels", view={"crop": 200}),
    _lever("wide", "Central 300 pixels", view={"crop": 300}),
    _lever("large", "A third larger", view={"size": 4 / 3}),
    _lever("broad", "Fewer, wider blocks", model=ModelConfig("broad")),
    _lever("slim_resnet", "A slim ResNet-18", model=ModelConfig("slim_resnet")),
    _lever("broad_kernel", "Fewer, wider blocks, 5 x 5", model=ModelConfig("broad", kernel=5)),
    # Chosen on the split and tried there, on the other folds, on all images, with one part less, and with one more.
    _best("best", "Best recipe", "best", seeds=0),
    _best("best_final", "Best recipe, all images", "best", part="all"),
    *(_best(f"best_fold{k}", f"Best recipe, fold {k + 1} of 5", "best_cv", part=f"fold{k}") for k in range(1, 5)),
    _best("best_no_slim", "The main network in its place", "best_parts", model=_NETWORK),
    _best("best_no_turns", "No quarter turns", "best_parts", turns=False),
    _best("best_no_length", "Two thirds of its epochs", "best_parts", length=1.0),
    _best("best_scale", "With scale", "best_parts", scale=(0.8, 1.25)),
    _best("best_colour", "With colour", "best_parts", brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02),
    _best("best_average", "With averaged weights", "best_parts", train=TrainConfig(average=0.996)),
    # What it is worth to leave out training labels that look wrong; `experiments.suspected` says how.
    *(
        Experiment(f"cv_pair{j}{k}", f"Folds {j + 1} and {k + 1} held out", "cv_pair", part=f"pair{j}{k}", seeds=1)
        for j, k in itertools.combinations(range(5), 2)
    ),
    *(
        Experiment(f"cv_clean{k}", f"Fold {k + 1} of 5, suspects left out", "cv_clean", part=f"clean{k}", seeds=1)
        for k in range(5)
    ),
)
EXPERIMENTS = {**STUDY, **EXTRA}
# Runs that together predict each image once, by the recipe's name. The first fold is the split, hence `best` itself.
FOLDS = {
    "main": tuple(f"cv_fold{k}" for k in range(5)),
    "best": ("best", *(f"best_fold{k}" for k in range(1, 5))),
}
GROUPS = tuple(dict.fromkeys(row.group for row in EXTRA.values()))


def experiment(name: str) -> Experiment:
    """The experiment called `name`. Raises BloodcellError for an unknown one."""
    if name not in EXPERIMENTS:
        raise BloodcellError(f"Unknown experiment '{name}': choose one of {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def profile(name: str) -> Profile:
    """The profile called `name`. Raises BloodcellError for an unknown one."""
    if name not in PROFILES:
        raise BloodcellError(f"Unknown profile '{name}': choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]
