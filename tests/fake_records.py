"""Plausible records of runs that never were, in the schema of the real ones: for tests of what reads records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from bloodcell_lib.cells import CELL_TYPES
from bloodcell_lib.plans import EXPERIMENTS, STUDY

# Final validation accuracy that each experiment is drawn around, parameters and multiply-accumulates at 112 pixels.
ACCURACY = {
    "main": 0.970,
    "simple_cnn": 0.780,
    "resnet18": 0.880,
    "efficientnet_lite": 0.935,
    "no_se": 0.966,
    "reg_none": 0.945,
    "reg_dropout": 0.950,
    "reg_label_smoothing": 0.955,
    "reg_stochastic_depth": 0.950,
    "reg_weight_decay": 0.946,
    "lr_constant": 0.940,
    "lr_step": 0.962,
    "aug_none": 0.900,
    "aug_flips": 0.945,
    "aug_flips_rotation": 0.958,
    "simple_cnn_full": 0.900,
    "resnet18_full": 0.965,
    "efficientnet_lite_full": 0.962,
    "as_described": 0.955,
    "best": 0.985,
}
SIZES = {
    "simple_cnn": ("simple_cnn", 26_084_104, 370_000_000),
    "resnet18": ("resnet18", 11_180_616, 486_000_000),
    "efficientnet_lite": ("efficientnet_lite", 550_000, 40_000_000),
    "as_described": ("as_described", 300_000, 44_000_000),
    "best": ("slim_resnet", 1_763_264, 250_000_000),
}
MAIN_SIZE = ("deep_efficientnet", 1_843_366, 98_000_000)


def write_records(
    folder: Path,
    experiments: list[str] | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 5,
    images: int = 640,
    profile: str = "cpu",
) -> list[Path]:
    """Writes `<folder>/<experiment>/seed<k>/`: record.json and, but for runs on all images, validation.npz.

    Gives the folders. `experiments` None is the whole study; each fold validates on images of its own. The same
    arguments give the same numbers. Which images are hard is shared by all runs, so that seeds and experiments agree
    as real ones do.
    """
    written = []
    for name in list(STUDY) if experiments is None else experiments:
        for seed in seeds:
            target = Path(folder) / name / f"seed{seed}"
            target.mkdir(parents=True)
            _write(target, name, seed, epochs, images, profile)
            written.append(target)
    return written


def _write(target: Path, name: str, seed: int, epochs: int, images: int, profile: str) -> None:
    part = EXPERIMENTS[name].part
    fold = int(part[-1]) if part.startswith("fold") else None
    offset = 10_000 * (fold or 0)  # the first fold is the split
    classes = len(CELL_TYPES)
    labels = np.arange(images) % classes
    names = []
    for i, label in enumerate(labels):
        prefixes = list(CELL_TYPES[label].prefixes)
        names.append(f"{prefixes[i // classes % len(prefixes)]}_{offset + i:06d}.jpg")

    has_validation = part != "all"
    recipe = "best" if name.startswith("best_fold") or name == "best_final" else name
    aim = ACCURACY.get(recipe, ACCURACY["main"])
    rng = np.random.default_rng([seed, list(EXPERIMENTS).index(name), fold or 0])
    probabilities = _probabilities(rng, labels, aim, offset)
    final = float((probabilities.argmax(1) == labels).mean())

    epoch = np.arange(1, epochs + 1)
    rise = 1 - np.exp(-5 * epoch / epochs)
    start = 1 / classes
    train = start + (min(0.999, final + 0.02) - start) * rise + rng.normal(0, 0.004, epochs)
    validation = start + (final - start) * rise + rng.normal(0, 0.01, epochs) * (epoch < epochs)
    validation = np.round(np.clip(validation, 0, 1) * images) / images
    validation[-1] = final
    best = int(validation.argmax())
    history = []
    for i in range(epochs):
        history.append(
            {
                "epoch": i + 1,
                "train_loss": float(0.5 - 1.7 * math.log(min(0.999, train[i]))),
                "train_accuracy": float(np.clip(train[i], 0, 1)),
                "validation_loss": float(0.55 - 1.8 * math.log(validation[i])) if has_validation else None,
                "validation_accuracy": float(validation[i]) if has_validation else None,
                "learning_rate": float(1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * i / epochs)) / 2),
                "seconds": 17.1,
                "images_per_second": 149.0,
            }
        )
    model, parameters, macs = SIZES.get(recipe.removesuffix("_full"), MAIN_SIZE)
    baseline = EXPERIMENTS[name].group == "baseline"
    record = {
        "format": 1,
        "experiment": name,
        "title": EXPERIMENTS[name].title,
        "group": EXPERIMENTS[name].group,
        "order": list(EXPERIMENTS).index(name),
        "seed": seed,
        "profile": profile,
        "config": {
            "model": {"name": model, "dropout": 0.3, "stochastic_depth": 0.2, "squeeze_excite": name != "no_se"},
            "train": {
                "epochs": round(epochs * EXPERIMENTS[name].length),
                "batch_size": 32,
                "optimiser": "adam" if baseline else "adamw",
                "learning_rate": 0.001,
                "weight_decay": 0.0 if baseline else 1e-4,
                "schedule": EXPERIMENTS[name].train.schedule,
                "after": EXPERIMENTS[name].train.after,
                "copies": EXPERIMENTS[name].train.copies,
            },
            "augment": {"flips": name != "aug_none", "rotation": 30.0, "turns": EXPERIMENTS[name].augment.turns},
            "pixels": 112,
            "crop": 280,
            "per_class": None,
            "part": EXPERIMENTS[name].part,
        },
        "data": {
            "source": "course images",
            "fingerprint": "ab12cd34ef56",
            "course": True,
            "train": 4 * images + (0 if has_validation else images),
            "validation": images if has_validation else 0,
            "split_sha256": "0" * 64,
        },
        "model": {"parameters": parameters, "macs": macs},
        "history": history,
        "final_validation_accuracy": final if has_validation else None,
        "best_validation_accuracy": float(validation[best]) if has_validation else None,
        "best_epoch": best + 1 if has_validation else None,
        "peak_memory_bytes": 1_200_000_000,
        "wall_seconds": 17.2 * epochs,
        "machine": {
            "device": "a processor (2 threads)",
            "python": "3.11.7",
            "torch": "2.15.0",
            "torchvision": "0.29.2",
            "numpy": "2.4.6",
        },
        "commit": "abc123",
        "started": "2026-01-05T18:30:00+00:00",
        "ended": "2026-01-05T18:37:10+00:00",
    }
    (target / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    if has_validation:
        np.savez(
            target / "validation.npz",
            names=np.array(names),
            labels=labels.astype(np.int64),
            probabilities=probabilities.astype(np.float16),
        )


def _probabilities(rng: np.random.Generator, labels: np.ndarray, accuracy: float, offset: int) -> np.ndarray:
    """float64 (n, 8), rows sum to 1; the true class wins in close to `accuracy` of the images, the hard ones first."""
    n, classes = len(labels), len(CELL_TYPES)
    # The same for every run: how hard each image is, and the class that it is mistaken for (a near one more often).
    shared = np.random.default_rng(offset)
    hard = shared.normal(size=n) + np.where(np.isin(labels, (3, 5)), 0.5, 0.0)
    mistaken = (labels + shared.choice([1, 2, 7], size=n, p=[0.2, 0.3, 0.5])) % classes
    hard = hard + 0.7 * rng.normal(size=n)
    wrong = np.zeros(n, dtype=bool)
    wrong[np.argsort(-hard)[: rng.binomial(n, 1 - accuracy)]] = True
    winner = np.where(wrong, mistaken, labels)
    top = np.where(wrong, rng.uniform(0.35, 0.8, n), rng.uniform(0.6, 0.98, n))
    rest = rng.dirichlet(np.ones(classes), n) * 0.3
    rest[np.arange(n), winner] = 0
    rest *= ((1 - top) / rest.sum(1))[:, None]
    # No other class may pass the winner.
    rest = np.minimum(rest, 0.9 * top[:, None])
    rest[np.arange(n), winner] = top
    return rest / rest.sum(1, keepdims=True)
