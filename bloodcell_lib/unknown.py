"""Does a network know what it does not know? Cells of a class that it never saw, and pictures of no cell at all.

Three scores, each higher for what looks known: the largest softmax (Hendrycks and Gimpel 2017), the energy (Liu et al.
2020) and the Mahalanobis distance of the penultimate features (Lee et al. 2018). Known is the positive class: AUROC is
the chance that a known image scores above an unknown one, and FPR95 the share of unknown images that pass a threshold
which 95 % of the known ones pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from bloodcell_lib import data, oddities, plans, views
from bloodcell_lib.analysis import Subject, outputs
from bloodcell_lib.cells import CLASS_MAP, NAMES
from bloodcell_lib.data import CellImages
from bloodcell_lib.evaluate import over_seeds
from bloodcell_lib.records import Record
from bloodcell_lib.robustness import spread

SCORES = {"max_softmax": "Largest softmax", "energy": "Energy", "mahalanobis": "Mahalanobis"}
TPR = 0.95
DEMO_TRAIN, DEMO_IMAGES = 384, 96


def analyse(subject: Subject) -> dict[str, Any]:
    """Known against unknown, for each class that a network was kept from, and for pictures of no cell.

    left_out: by class, from the runs `without_<class>`, which are of the main recipe and left to it: runs, accuracy on
    the known classes, known and unknown (images: the validation images of the known classes, and of the class left
    out), scores (`separation` of each) and taken_for (share of the unknown named as each class). missing: classes
    without such a run. main: the experiment's own networks against each set of `oddities`. train: training images that
    the Mahalanobis distance is fitted on. A demo is bounded to `DEMO_TRAIN` and `DEMO_IMAGES`.
    """
    disposable = plans.profile(subject.profile).disposable
    most = (DEMO_TRAIN, DEMO_IMAGES) if disposable else (len(subject.cells), len(subject.cells))
    held_out = data.split(subject.cells)[1]
    left_out, missing = {}, []
    for name in NAMES if subject.experiment == "main" else ():
        records = subject.of(plans.WITHOUT + name)
        if not records:
            missing.append(name)
            continue
        unknown = subject.cells.subset(held_out[subject.cells.labels.numpy()[held_out] == CLASS_MAP[name]])
        left_out[name] = compare(subject, records, {name: unknown.images}, most)[name]
    own = subject.records
    odd = oddities.draw(spread(subject.held_out(own[0]), most[1]).images)
    return {
        "tpr": TPR,
        "train": min(len(views.divide(subject.cells, "split")[0]), most[0]),
        "left_out": left_out,
        "missing": missing,
        "main": compare(subject, own, odd, most),
    }


def compare(
    subject: Subject, records: Sequence[Record], unknown: dict[str, Tensor], most: tuple[int, int]
) -> dict[str, dict[str, Any]]:
    """Each set of unknown images (n, 3, H, W) against the images that the networks of `records` validated on.

    most: bounds of the training images and of the known ones.
    """
    train, known = views.divide(subject.cells, records[0].info["config"]["part"])
    train, known = spread(train, most[0]), spread(known, most[1])
    seen, hits, found = [], [], {name: [] for name in unknown}
    named = {name: [] for name in unknown}
    for record in records:
        judge = Judge(subject.network(record), train)
        scores, said = judge(known.images)
        seen.append(scores)
        hits.append(said == known.labels.numpy())
        for name, images in unknown.items():
            scores, said = judge(images)
            found[name].append(scores)
            named[name].append(np.bincount(said, minlength=len(NAMES)) / len(said))
    return {
        name: {
            "runs": [f"{record.experiment}/seed{record.seed}" for record in records],
            "known": len(known),
            "unknown": len(images),
            "accuracy": over_seeds(np.stack(hits)),
            "scores": {
                score: separation(np.stack([s[score] for s in seen]), np.stack([s[score] for s in found[name]]))
                for score in SCORES
            },
            "taken_for": dict(zip(NAMES, np.mean(named[name], axis=0).tolist())),
        }
        for name, images in unknown.items()
    }


class Judge:
    """`Judge(network, train)(images)`: the scores of each image, float64 (n,) by name, and its class, int (n,).

    Only outputs of classes that occur in `train` count: the eighth output of a network that seven classes trained was
    only ever pushed down, and says nothing.
    """

    def __init__(self, network: nn.Module, train: CellImages) -> None:
        self.network, labels = network, train.labels.numpy()
        self.classes = np.unique(labels)
        features = outputs(network, train.images)[0].double().numpy()
        self.means = np.stack([features[labels == k].mean(0) for k in self.classes])  # (k, d)
        centred = features - self.means[np.searchsorted(self.classes, labels)]
        # Shrunk (Ledoit and Wolf 2004), as fewer images than features would leave no inverse.
        self.precision = LedoitWolf(assume_centered=True).fit(centred).precision_

    def __call__(self, images: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
        features, given = (seen.double().numpy() for seen in outputs(self.network, images))
        given = given[:, self.classes]
        apart = features[:, None] - self.means  # (n, k, d)
        distance = np.einsum("nki,ij,nkj->nk", apart, self.precision, apart, optimize=True)
        scores = {
            "max_softmax": softmax(given, axis=1).max(1),
            "energy": logsumexp(given, axis=1),  # minus the energy, at a temperature of 1
            "mahalanobis": -distance.min(1),
        }
        return scores, self.classes[given.argmax(1)]


def separation(known: np.ndarray, unknown: np.ndarray, resamples: int = 1_000, seed: int = 0) -> dict[str, float]:
    """AUROC and FPR95 of scores, float (seeds, n) and (seeds, m), means over seeds; each with low and high.

    Intervals: 95 % percentile bootstrap over images, known and unknown by themselves, the same draws for every seed.
    """
    rng = np.random.default_rng(seed)
    n, m = known.shape[1], unknown.shape[1]
    once = [np.ones((1, size), np.float32) for size in (n, m)]
    drawn = [rng.multinomial(size, np.full(size, 1 / size), resamples).astype(np.float32) for size in (n, m)]
    result: dict[str, float] = {}
    for name, measure in (("auroc", _auroc), ("fpr95", _fpr)):
        value, spreads = (np.mean([measure(k, u, *c) for k, u in zip(known, unknown)], 0) for c in (once, drawn))
        low, high = np.quantile(spreads, [0.025, 0.975])
        result |= {name: float(value[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return result


def means(rows: dict[str, dict[str, Any]], measure: str) -> dict[str, float]:
    """Each score's `measure` (auroc, fpr95), its mean over what `compare` says of several kinds of the unknown."""
    return {score: float(np.mean([row["scores"][score][measure] for row in rows.values()])) for score in SCORES}


def _auroc(known: np.ndarray, unknown: np.ndarray, times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For images that count `times` (draws, n) and `others` (draws, m): (draws,). Ties count a half."""
    wins = (known[:, None] > unknown).astype(np.float32) + 0.5 * (known[:, None] == unknown)  # (n, m)
    return ((times @ wins) * others).sum(1) / (times.sum(1) * others.sum(1))


def _fpr(known: np.ndarray, unknown: np.ndarray, times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The same for the share of unknown images at or above the threshold that `TPR` of the known ones reach."""
    order = np.argsort(known)
    # The first known image with more than 5 % of them at or below it is the last that may be let go.
    at = (times[:, order].cumsum(1) > (1 - TPR) * times.sum(1, keepdims=True)).argmax(1)
    return ((unknown >= known[order][at][:, None]) * others).sum(1) / others.sum(1)
