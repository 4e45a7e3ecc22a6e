"""How to train: the recipe, and what follows from it in each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bloodcell_lib.errors import BloodcellError

PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the main recipe.

    optimiser: `adamw` (betas 0.9, 0.999) or `adam`, which gets no weight decay. schedule: `cosine` to `final_rate`
    (Loshchilov and Hutter 2017, without restarts), `step` (a tenth at 1/2 and again at 3/4 of the epochs) or
    `constant`; all after `warmup` epochs of linear rise. clip: largest gradient norm, 0 for none. average: decay of
    the exponential average of the weights that is evaluated and kept, which `trainer.blend` warms up; 0 for none.
    precision: `float32`, `float16` or `bfloat16`; None takes float16 on CUDA and float32 elsewhere. start_size: the
    share of an image's side with which training begins; see `side`. mixup, cutmix: alpha of the Beta distribution of
    `mixing`, 0 for none.
    sharpness: how far a step first climbs, as a length in the space of the weights, before it takes the gradient there
    (rho of Foret et al. 2021, equation 3), 0 for none; it takes twice the time. pretrain: epochs of `pretrain.contrast`
    on the training images before the first, each of which shows every image twice. distil: share of each image's
    target that is what other networks say of it (Hinton et al. 2015, at temperature 1), 0 for none. after: the recipe
    whose network, of the same images and seed, goes on learning by this one; "" for fresh weights. copies: of each
    training image, so many beside it as they come back from other sites (`abroad`).
    """

    epochs: int = 50
    batch_size: int = 32
    optimiser: str = "adamw"
    learning_rate: float = 1e-3
    final_rate: float = 1e-6
    schedule: str = "cosine"
    warmup: int = 0
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    clip: float = 1.0
    average: float = 0.0
    precision: str | None = None
    start_size: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    sharpness: float = 0.0
    pretrain: int = 0
    distil: float = 0.0
    after: str = ""
    copies: int = 0
    seed: int = 0
    deterministic: bool = True

    def check(self) -> None:
        """Raises BloodcellError for a value that no run can have."""
        for name, choices in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES), ("precision", [None, *PRECISIONS])):
            if getattr(self, name) not in choices:
                raise BloodcellError(
                    f"Unknown {name} '{getattr(self, name)}': choose one of {', '.join(c for c in choices if c)}."
                )
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise BloodcellError(f"{name} is {getattr(self, name)}: give 1 or more.")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise BloodcellError(f"learning_rate is {self.learning_rate}: give a positive number.")
        for name in ("label_smoothing", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise BloodcellError(f"{name} is {getattr(self, name)}: give at least 0 and less than 1.")
        if not 0 <= self.distil <= 1:
            raise BloodcellError(f"distil is {self.distil}: give a share from 0 to 1.")
        if self.distil and self.copies:
            raise BloodcellError("Nobody taught what copies are: give distil or copies, not both.")
        if not 0 < self.start_size <= 1:
            raise BloodcellError(f"start_size is {self.start_size}: give more than 0 and at most 1.")
        for name in (
            "final_rate",
            "warmup",
            "weight_decay",
            "clip",
            "mixup",
            "cutmix",
            "sharpness",
            "pretrain",
            "copies",
            "seed",
        ):
            if not 0 <= getattr(self, name) < 2**63:
                raise BloodcellError(f"{name} is {getattr(self, name)}: give 0 or more.")


# The share of the rate that is left when the share `done` of the epochs is behind.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "step": lambda done: 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01,
    "constant": lambda done: 1.0,
}
OPTIMISERS = ("adamw", "adam")
STRIDE = 16


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """The rate at `epoch`, a real number from 0 to `config.epochs`; a function of nothing else, so nothing to save."""
    if epoch < config.warmup:
        return config.learning_rate * (epoch + 1e-3) / config.warmup
    done = (epoch - config.warmup) / max(1e-9, config.epochs - config.warmup)
    low = config.final_rate if config.schedule == "cosine" else 0.0
    return low + (config.learning_rate - low) * SCHEDULES[config.schedule](min(1.0, done))


def side(config: TrainConfig, pixels: int, epoch: int) -> int:
    """The side at which images of `pixels` are trained on in `epoch`, counted from 0, in pixels.

    It grows evenly over the first three quarters of the epochs, by steps of what the networks shrink an image by
    (progressive resizing; Tan and Le 2021, "EfficientNetV2"). A small image is the same cells for less arithmetic.
    """
    share = config.start_size + (1 - config.start_size) * epoch / (0.75 * config.epochs)
    return pixels if share >= 1 else min(pixels, max(1, round(share * pixels / STRIDE)) * STRIDE)
