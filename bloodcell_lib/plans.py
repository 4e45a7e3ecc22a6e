"""What may be run: the study as a table of rows, and the budgets (profiles) that they are run under."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
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
        Profile("demo", pixels=64, crop=200, epochs=16, seeds=(0,), study="demo/study"),
        Profile("demo/study", pixels=64, crop=200, epochs=3, seeds=(0,), per_class=16),
        # Two cores take the whole study in about five hours; the crop holds the nucleus of 99 white cells in 100.
        Profile("cpu", pixels=96, crop=240, epochs=20, seeds=(0, 1, 2)),
        Profile("full", pixels=224, crop=None, epochs=50, seeds=(0, 1, 2)),
    )
}

SHORT = 0.4  # of the profile's epochs
WITHOUT = "without_"  # before the class that a part leaves out

_NETWORK, _MAIN, _FLIPS = ModelConfig(), TrainConfig(), replace(NONE, flips=True)
_PLAIN = ModelConfig(dropout=0.0, stochastic_depth=0.0)
_LOOSE = TrainConfig(weight_decay=0.0, label_smoothing=0.0)
# Views that keep what a type is told by, size and colour; plain convolutions, which learn more an hour; and longer.
_BEST_NETWORK, _SYMMETRIES = ModelConfig("slim_resnet"), replace(_FLIPS, turns=True)
_WHITE = replace(_BEST_NETWORK, white_point=True)
_NEAR = (0.8, 1.25)  # scales; how much larger a cell looks tells some of its type
_HALVED = replace(_BEST_NETWORK, halved=True)
_WARM = TrainConfig(learning_rate=2e-3, warmup=2, weight_decay=0.05)
_MAGNIFIED = {"crop": 200, "size": 4 / 3}  # a pixel of the input covers 1.6 of a photograph under `cpu`, not 2.5
_ROTATED = {"model": _HALVED, "size": 2.0, "rotation": 180.0, "length": 3.0}
# As much as `reader` misreads what it is to undo.
_HARDY = _ROTATED | {"scale": _NEAR, "stain": 0.3, "blur": 1.5}
_MOVED = _MAGNIFIED | {"model": _HALVED, "size": 2 * _MAGNIFIED["size"], "rotation": 180.0, "scale": _NEAR}
_SEASONED = _MOVED | {
    "train": TrainConfig(after="magnified", warmup=1),
    "length": 1.0,
    "stain": 0.3,
    "blur": 2.5,
    "tint": 0.06,
    "jpeg": 15.0,
}
# It goes on once more, a third of its images as they are, the others as they come back from elsewhere.
_TRAVELLED = _MOVED | {"train": TrainConfig(after="seasoned", warmup=1, copies=2), "length": 0.35}
# Faster for plain convolutions on processors with matrix units for it; what it costs, `travelled_in_half` tells.
_HALF = {"precision": "bfloat16"}
# All that time for our own photographs, at once.
_PATIENT = _MOVED | {"train": TrainConfig(**_HALF), "length": 3.5}
_ABROAD = _MOVED | {"train": TrainConfig(after="patient", warmup=1, copies=2, **_HALF), "length": 0.5}
# What keeps most of it elsewhere is more of elsewhere: of each image twice as many versions, for as many pictures.
_FAR = _MOVED | {"train": TrainConfig(after="patient_travelled", warmup=1, copies=4, **_HALF), "length": 0.3}
_REMEDIES = {"stain": 0.4, "scale": (0.5, 2.5), "blur": 1.0}
# What the reference gave its baselines: Adam at 1e-3, nothing else, 10 epochs.
_REFERENCE = TrainConfig(optimiser="adam", schedule="constant", weight_decay=0.0, label_smoothing=0.0, clip=0.0)


def _baseline(name: str, title: str) -> Experiment:
    return Experiment(name, title, "baseline", ModelConfig(name), _REFERENCE, epochs=10)


def _regularised(name: str, title: str, model: ModelConfig = _PLAIN, train: TrainConfig = _LOOSE) -> Experiment:
    return Experiment(f"reg_{name}", title, "regularisation", model, train)


def _lever(name: str, title: str, model: ModelConfig = _NETWORK, **augment: Any) -> Experiment:
    """The main recipe with flips as its only augmentation, and one thing more; a seed is enough to screen it."""
    return Experiment(f"with_{name}", title, "lever", model, augment=replace(_FLIPS, **augment), seeds=1)


def _best(
    name: str,
    title: str,
    group: str = "part",
    model: ModelConfig = _BEST_NETWORK,
    train: TrainConfig = _MAIN,
    part: str = "split",
    seeds: int = 1,
    crop: int | None = None,
    size: float = 1.0,
    length: float = 1.5,
    **augment: Any,
) -> Experiment:
    """The best recipe with one thing changed, or a few that go together."""
    augmented = replace(_SYMMETRIES, **augment)
    return Experiment(name, title, group, model, train, augmented, part, 0, seeds, crop, size, length)


def _other_folds(name: str, title: str, seeds: int = 1, **changes: Any) -> Iterator[Experiment]:
    """A recipe on the folds that are not the split."""
    for k in range(1, 5):
        yield _best(
            f"{name}_fold{k}", f"{title}, fold {k + 1} of 5", f"{name}_cv", part=f"fold{k}", seeds=seeds, **changes
        )


def _recipe(name: str, title: str, seeds: int = 1, others: int = 1, **changes: Any) -> Iterator[Experiment]:
    """A recipe on the split, with so many seeds; on the other folds, with so many; on all images, with one."""
    yield _best(name, title, "confirmed", seeds=seeds, **changes)
    yield from _other_folds(name, title, others, **changes)
    yield _best(f"{name}_final", f"{title}, all images", "confirmed", part="all", **changes)


def _stage(name: str, title: str, train: TrainConfig, length: float) -> Experiment:
    """The travelled recipe's views, learned another way."""
    changes = _MOVED | {"train": replace(train, **_HALF), "length": length}
    return _best(f"travelled_{name}", title, "stage", **changes)


def _less(name: str, title: str, **changes: Any) -> Experiment:
    """The patient recipe with one of its levers left as the best recipe has it."""
    return _best(f"patient_not_{name}", f"Patient recipe, {title}", "ablation", **_PATIENT | changes)


_short = partial(_best, length=SHORT)  # at which much can be tried


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
        Experiment(f"{row.name}_full", f"{row.title}, main recipe", "extra", row.model)
        for row in STUDY.values()
        if row.group == "baseline"
    ),
    Experiment("as_described", "Blocks as described", "extra", ModelConfig("as_described")),
    # The folds show what another split does; a seed each is enough for that.
    *(Experiment(f"cv_fold{k}", f"Fold {k + 1} of 5", "cv", part=f"fold{k}", seeds=1) for k in range(5)),
    Experiment("growing_images", "Images that grow", "speed", train=TrainConfig(start_size=0.5)),
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
    # What led from flips alone to the best recipe, one thing at a time.
    _lever("turns", "Flips and quarter turns", turns=True),
    _lever("slim_resnet", "A slim ResNet-18", model=_BEST_NETWORK),
    # Chosen on the split and tried there, on the other folds, and on all images.
    _best("best", "Best recipe", "best", seeds=0),
    _best("best_final", "Best recipe, all images", "best", part="all"),
    *_other_folds("best", "Best recipe", seeds=2),
    # What is tried on its short form below, and promises something elsewhere, on the whole recipe.
    _best("best_white_point", "Best recipe, white point", "confirmed", seeds=0, model=_WHITE),
    _best("best_remedies", "Best recipe, all remedies", "confirmed", seeds=0, model=_WHITE, **_REMEDIES),
    _best("best_in_half", "Best recipe, half precision", "confirmed", seeds=0, train=TrainConfig(**_HALF)),
    _best("best_warm", "Best recipe, higher rate", "confirmed", seeds=0, train=_WARM),
    # Both views that did a little good on the short form, together, and on all folds: one split cannot tell so little.
    _best("magnified", "Best recipe, magnified", "confirmed", **_MAGNIFIED),
    *_other_folds("magnified", "Magnified", **_MAGNIFIED),
    # More kinds of pictures take longer to learn: how much of it is the time alone, the first row tells.
    _best("best_longer", "Best recipe, longer", "confirmed", length=3.0),
    _best("rotated", "Best recipe, rotated", "confirmed", **_ROTATED),
    *_recipe("hardy", "Hardy recipe", **_HARDY),
    # What the last two gained, fine detail and hardiness, in one network: a magnified one that goes on learning.
    _best("seasoned", "Seasoned recipe", "confirmed", **_SEASONED),
    *_other_folds("seasoned", "Seasoned recipe", **_SEASONED),
    _best("travelled", "Travelled recipe", "confirmed", **_TRAVELLED),
    *_other_folds("travelled", "Travelled recipe", **_TRAVELLED),
    _best("magnified_final", "Magnified, all images", "confirmed", part="all", **_MAGNIFIED),
    _best("seasoned_final", "Seasoned recipe, all images", "confirmed", part="all", **_SEASONED),
    _best("travelled_final", "Travelled recipe, all images", "confirmed", part="all", **_TRAVELLED),
    # The travelled recipe taken apart: its last stage with nothing from elsewhere, without the stage before it, and all
    # of it at once, each for as many pictures. The first row is what their numbers' half precision does alone.
    _stage("in_half", "Travelled recipe, half precision", _TRAVELLED["train"], _TRAVELLED["length"]),
    _stage("at_home", "Travelled recipe, no other sites", TrainConfig(after="seasoned", warmup=1), 1.05),
    _stage("unseasoned", "Travelled recipe, not seasoned", TrainConfig(after="magnified", warmup=1, copies=2), 0.7),
    _stage("at_once", "Travelled recipe, at once", TrainConfig(copies=2), 1.2),
    # Nothing from elsewhere, which did most for our own photographs, and at once.
    *_recipe("patient", "Patient recipe", seeds=0, others=2, **_PATIENT),
    # Taken apart, one lever at a time; `travelled_in_half` tells what half precision does.
    _less("longer", "no longer than best", length=1.5),
    _less("magnified", "not magnified", crop=None, size=2.0),
    _less("rotated", "not rotated", rotation=0.0),
    _less("scaled", "not scaled", scale=(1.0, 1.0)),
    _less("halved", "not shrunk by the network", model=_BEST_NETWORK, size=_MAGNIFIED["size"]),
    # And then with what comes back from elsewhere.
    *_recipe("patient_travelled", "Patient recipe, travelled", seeds=0, others=2, **_ABROAD),
    *_recipe("well_travelled", "Well-travelled recipe", seeds=0, others=2, **_FAR),
    # The same in a quarter of the time, which what follows is set against: remedies against other microscopes and
    # stains, finer labels, and the recipe with one part less, or one more.
    _short("best_short", "Best recipe, short", "best", seeds=0),
    _short("group_norm", "Group norm", "robustness", replace(_BEST_NETWORK, norm="group"), seeds=0),
    _short("stain_jitter", "Stain jitter", "robustness", seeds=0, stain=0.4),
    _short("grey_world", "Grey-world colours", "robustness", replace(_BEST_NETWORK, grey_world=True), seeds=0),
    _short("white_point", "White point", "robustness", _WHITE, seeds=0),
    _short("white_and_stain", "White point and stain jitter", "robustness", _WHITE, seeds=0, stain=0.4),
    _short("all_remedies", "White point, stains, scale and blur", "robustness", _WHITE, seeds=0, **_REMEDIES),
    _short("finer_labels", "Finer labels", "labels", replace(_BEST_NETWORK, finer=True), seeds=0),
    _short("short_main_network", "The main network in its place", model=_NETWORK),
    _short("short_broad", "Fewer, wider MBConv blocks", model=ModelConfig("broad")),
    _short("short_broad_kernel", "Fewer, wider MBConv blocks, 5 x 5", model=ModelConfig("broad", kernel=5)),
    _short("short_no_turns", "No quarter turns", turns=False),
    _short("short_free_rotation", "Any rotation", rotation=180.0),
    _short("short_scale", "Scale", scale=_NEAR),
    _short("short_wide_scale", "Scale from a half to 2.5", scale=(0.5, 2.5)),
    _short("short_colour", "Mild colour", brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02),
    _short("short_stain", "Mild stain jitter", stain=0.2),
    _short("short_tint", "White balance", tint=0.2),
    _short("short_blur", "Blur", blur=1.0),
    _short("short_mixup", "Mixup", train=TrainConfig(mixup=0.2)),
    _short("short_cutmix", "CutMix", train=TrainConfig(cutmix=1.0)),
    _short("short_average", "Averaged weights", train=TrainConfig(average=0.996)),
    _short("short_warm", "Higher rate, warm-up, more decay", train=_WARM),
    _short("short_sharpness", "Sharpness-aware steps", train=TrainConfig(sharpness=0.05)),
    _short("short_small_batch", "Batches of 16", train=TrainConfig(batch_size=16)),
    _short("short_growing", "Images that grow", train=TrainConfig(start_size=0.5)),
    _short("short_longer", "Twice as long", length=2 * SHORT),
    _short("short_close", "Central 200 pixels", crop=200),
    _short("short_wide", "Central 300 pixels", crop=300),
    _short("short_large", "A third larger", size=4 / 3),
    _short("short_close_up", "Whole and close up", model=replace(_BEST_NETWORK, close_up=True), size=2.0),
    # Turned and scaled before they are shrunk, so that what is resampled is as sharp as what is not.
    _short("short_halved", "Shrunk by the network", model=_HALVED, size=2.0),
    _short("short_halved_rotation", "Any rotation, then shrunk", model=_HALVED, size=2.0, rotation=180.0),
    _short("short_halved_scale", "Scale, then shrunk", model=_HALVED, size=2.0, scale=_NEAR),
    # Under `cpu`, as long as short_longer in all.
    _short("short_pretrained", "Learning without labels first", train=TrainConfig(pretrain=4)),
    # What it is worth to leave out training labels that look wrong; `earlier.suspected` says how.
    *(_short(f"short_fold{k}", f"Short, fold {k + 1} of 5", "cv_short", part=f"fold{k}") for k in range(1, 5)),
    *(
        _short(f"cv_pair{j}{k}", f"Folds {j + 1} and {k + 1} held out", "cv_pair", part=f"pair{j}{k}")
        for j, k in itertools.combinations(range(5), 2)
    ),
    # Its teachers are those of the pairs that hold the split's fold out.
    _short("short_distilled", "Distilled from four networks", "distilled", train=TrainConfig(distil=0.5)),
    *(_short(f"cv_clean{k}", f"Fold {k + 1} of 5, suspects left out", "cv_clean", part=f"clean{k}") for k in range(5)),
)
EXPERIMENTS = {**STUDY, **EXTRA}
# What a sentence calls the recipes that are cross-validated.
RECIPES = {
    "main": "the main recipe",
    "best": "the best recipe",
    "magnified": "the best recipe magnified",
    "hardy": "the hardy recipe",
    "seasoned": "the seasoned recipe",
    "travelled": "the travelled recipe",
    "patient": "the patient recipe",
    "patient_travelled": "the patient recipe travelled",
    "well_travelled": "the well-travelled recipe",
    "best_short": "the best recipe cut short",
}
OURS = tuple(name for name in RECIPES if name not in ("main", "best_short"))  # the latest last
# Runs that together predict each image once, by the recipe's name. The first fold is the split, hence `best` itself.
FOLDS = {
    "main": tuple(f"cv_fold{k}" for k in range(5)),
    **{name: (name, *(f"{name}_fold{k}" for k in range(1, 5))) for name in OURS},
    "best_short": ("best_short", *(f"short_fold{k}" for k in range(1, 5))),
}
# Made when the recipes before them had been compared on all folds.
IN_VIEW = ("seasoned", "travelled", "patient", "patient_travelled", "well_travelled")
CHOSEN = "well_travelled"  # the one whose weights `predict` has, from a run on all images
TRIED = ("robustness", "labels", "part", "distilled")  # groups of what is tried on the best recipe
BASES = {
    "lever": "aug_flips",
    "confirmed": "best",
    "stage": "travelled",
    "ablation": "patient",
    **dict.fromkeys(TRIED, "best_short"),
}  # what a group changes, where it is not main
GROUPS = tuple(dict.fromkeys(row.group for row in EXTRA.values()))


def experiment(name: str) -> Experiment:
    """The experiment called `name`. Raises BloodcellError for an unknown one."""
    if name not in EXPERIMENTS:
        raise BloodcellError(
            f"Unknown experiment '{name}': choose one of {', '.join(STUDY)}, or one of those beyond the study, which "
            "EXTRA in bloodcell_lib/plans.py lists."
        )
    return EXPERIMENTS[name]


def profile(name: str) -> Profile:
    """The profile called `name`. Raises BloodcellError for an unknown one."""
    if name not in PROFILES:
        raise BloodcellError(f"Unknown profile '{name}': choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def measured(experiment: str) -> str:
    """The experiment that tells how the networks of this one do: its recipe's, if it held no image out, or itself."""
    return "main" if experiment == "final" else experiment.removesuffix("_final")


def variants(experiment: str, *groups: str) -> list[str]:
    """The rows of these groups that change something in `experiment`."""
    return [
        name
        for name, row in EXPERIMENTS.items()
        if row.group in groups and BASES.get(row.group, "main") == experiment != name
    ]
