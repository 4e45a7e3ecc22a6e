"""How far may the predictions be trusted: one network, the eight symmetries averaged, several networks averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bloodcell_lib import calibration
from bloodcell_lib.analysis import Subject, logits
from bloodcell_lib.evaluate import wilson
from bloodcell_lib.records import Record

LEVELS = (0.95, 0.99)  # of the prediction sets
WANTED = (0.99, 0.995)  # accuracy on the cells that are not left to a human
HISTOGRAM = 20  # bins from 0 to 1
KINDS = {"plain": False, "tta": True}  # without the symmetries, and with them
PARTS = 5  # that a single validation set is cut into, where there are no folds


def symmetries(images: Tensor) -> list[Tensor]:
    """The eight turns and mirror images of (n, C, H, W) with H = W: the group of the square."""
    turns = [torch.rot90(images, k, (2, 3)) for k in range(4)]
    return turns + [turn.flip(3) for turn in turns]


def probabilities(network: nn.Module, images: Tensor, tta: bool = False) -> np.ndarray:
    """float64 (n, 8): softmax of the logits; with `tta` its mean over the eight symmetries of each image."""
    views = symmetries(images) if tta else [images]
    return torch.stack([logits(network, view).double().softmax(1) for view in views]).mean(0).numpy()


def out_of_sample(subject: Subject, tta: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """labels (n), probabilities (n, 8) and parts (n) for images that no network judging them was trained on.

    The five folds together, where they are recorded; else the validation images of the first run, in parts drawn once.
    """
    found = [
        (held_out.labels.numpy(), probabilities(subject.network(record), held_out.images, tta))
        for record, held_out in subject.folds()
    ]
    labels, given = (np.concatenate(values) for values in zip(*found))
    if len(found) > 1:
        return labels, given, np.repeat(np.arange(len(found)), [len(values) for values, _ in found])
    return labels, given, calibration.split_in_parts(labels, PARTS)


def analyse(subject: Subject) -> dict[str, Any]:
    """Calibration, abstention and prediction sets without and with the symmetries; what averaging networks gives."""
    folds = subject.folds()
    result: dict[str, Any] = {
        "runs": [f"{record.experiment}/seed{record.seed}" for record, _ in folds],
        "images": sum(len(held_out) for _, held_out in folds),
        "averaging": averaging(subject),
    }
    for name, tta in KINDS.items():
        labels, given, parts = out_of_sample(subject, tta)
        result[name] = judged(labels, given, parts)
    result["tta"]["with_earlier"] = with_earlier(subject, labels)
    return result


def with_earlier(subject: Subject, labels: np.ndarray) -> dict[str, Any] | None:
    """Accuracy over the symmetries where the judges of `out_of_sample`, whose labels these are, are averaged with the
    networks that they went on from: snapshots of one training (Huang et al. 2017). networks: how many are averaged;
    None where all began fresh. seeds: the same where the folds have further seeds, all averaged, and what each of them
    reaches; else None.
    """
    whole = subject.whole_folds() or [subject.fold_runs()]
    counts = {1 + len(subject.earlier(run)) for runs in whole for run in runs}
    if counts == {1} or len(counts) > 1:
        return None
    each, networks = [_averaged_with_earlier(subject, runs) for runs in whole], counts.pop()
    seeds = {
        "networks": networks * len(each),
        "each": [_accuracy(labels, given)["accuracy"] for given in each],
        **_accuracy(labels, np.mean(each, axis=0)),
    }
    return {"networks": networks, **_accuracy(labels, each[0]), "seeds": seeds if len(each) > 1 else None}


def _averaged_with_earlier(subject: Subject, runs: Sequence[Record]) -> np.ndarray:
    """float64 (n, 8): for the images that each run held out, its probabilities and those of its earlier ones."""
    parts = []
    for run in runs:
        networks, images = [*subject.earlier(run), run], subject.held_out(run).images
        parts.append(np.mean([probabilities(subject.network(one), images, tta=True) for one in networks], axis=0))
    return np.concatenate(parts)


def judged(labels: np.ndarray, given: np.ndarray, parts: np.ndarray) -> dict[str, Any]:
    """All that `calibration` says of one set of probabilities, before and after temperature scaling."""
    after, temperatures = calibration.calibrated(labels, given, parts)
    both = {}
    for name, p in (("before", given), ("after", after)):
        both[name] = calibration.scores(labels, p) | {
            "ece_mass_interval": calibration.interval(calibration.ece, labels, p),
            "bins": calibration.bins(labels, p).to_dict("list"),
            "histogram": np.histogram(p.max(1), HISTOGRAM, (0, 1))[0],  # images by confidence, equally wide bins
        }
    sets = {str(level): calibration.prediction_sets(labels, given, parts, level, temperatures) for level in LEVELS}
    return both | {
        "temperatures": temperatures,
        "coverage": calibration.coverage_curve(labels, after).to_dict("list"),
        "abstention": {
            str(wanted): calibration.abstention(labels, given, parts, wanted, temperatures) for wanted in WANTED
        },
        "sets": {level: calibration.set_scores(labels, inside) for level, inside in sets.items()},
    }


def averaging(subject: Subject) -> dict[str, Any]:
    """Accuracy on the validation split of single networks and of all seeds averaged, without and with the symmetries.

    Networks of cross-validation cannot be averaged here: every labelled image trained four of the five.
    """
    records = subject.records
    held_out = subject.held_out(records[0])
    labels = held_out.labels.numpy()
    result: dict[str, Any] = {"seeds": len(records), "images": len(labels)}
    for name, tta in KINDS.items():
        given = [probabilities(subject.network(record), held_out.images, tta) for record in records]
        result[name] = {
            "single": [_accuracy(labels, p)["accuracy"] for p in given],
            "ensemble": _accuracy(labels, np.mean(given, axis=0)),
        }
    return result


def _accuracy(labels: np.ndarray, given: np.ndarray) -> dict[str, float]:
    right = int((given.argmax(1) == labels).sum())
    low, high = wilson(right, len(labels))
    return {"accuracy": right / len(labels), "low": low, "high": high}
