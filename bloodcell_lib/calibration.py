"""May one believe the probabilities? Calibration, temperature, leaving cells to a human, and prediction sets.

labels int (n,) in 0..7; probabilities float (n, 8), rows sum to 1. `parts` int (n,) says which part of the images each
belongs to, such as its fold: whatever is fitted for a part is fitted on the other parts alone, so that no image helps
to judge itself. `temperatures` are those of the parts, as `calibrated` gives them: what is fitted for a part then sees
all images at that part's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from bloodcell_lib.cells import TITLES
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.evaluate import wilson

BINS = 15
SMALLEST = 2.0**-25  # half of the least number that float16, in which records keep probabilities, tells from zero


def split_in_parts(labels: np.ndarray, parts: int = 5, seed: int = 0) -> np.ndarray:
    """Stratified parts of held-out images that have no folds of their own: int (n,) in 0..parts-1.

    Raises BloodcellError for a class with fewer images than parts.
    """
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < parts:
        raise BloodcellError(f"A class has {fewest} held-out images: give at least {parts} of each, or record folds.")
    out = np.empty(len(labels), dtype=np.int64)
    for k, (_, inside) in enumerate(StratifiedKFold(parts, shuffle=True, random_state=seed).split(labels, labels)):
        out[inside] = k
    return out


def bins(labels: np.ndarray, probabilities: np.ndarray, equal: str = "mass", count: int = BINS) -> pd.DataFrame:
    """Predictions binned by confidence, the highest probability: columns n, confidence, accuracy, low, high.

    equal: "mass" gives bins of equally many images, "width" of equally wide ranges of confidence (Guo et al. 2017);
    empty ones are left out. low, high: Wilson's 95 % interval of the accuracy.
    """
    rows = [
        (int(n), c / n, r / n, *wilson(r, n)) for n, c, r in zip(*_binned(labels, probabilities, equal, count)) if n
    ]
    return pd.DataFrame(rows, columns=["n", "confidence", "accuracy", "low", "high"])


def _binned(labels: np.ndarray, probabilities: np.ndarray, equal: str, count: int) -> tuple[np.ndarray, ...]:
    """Of each bin the number of images, the sum of their confidences and how many are right: float (count,) each."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    if equal == "mass":
        rank = np.empty(len(labels), dtype=np.int64)
        rank[np.argsort(confidence, kind="stable")] = np.arange(len(labels))
        # The first bins take one image more where they cannot be even, as np.array_split has it.
        least, more = divmod(len(labels), count)
        at = np.repeat(np.arange(count), np.where(np.arange(count) < more, least + 1, least))[rank]
    elif equal == "width":
        at = np.minimum((confidence * count).astype(int), count - 1)
    else:
        raise BloodcellError(f"Unknown kind of bins '{equal}': choose mass or width.")
    return tuple(np.bincount(at, weights, count) for weights in (np.ones(len(at)), confidence, right))


def ece(labels: np.ndarray, probabilities: np.ndarray, equal: str = "mass", count: int = BINS) -> float:
    """Expected calibration error, a fraction: mean distance of confidence and accuracy over bins, weighted by images
    (Naeini et al. 2015). Never quite 0 for finitely many images, even where the probabilities are true."""
    n, confidence, right = _binned(labels, probabilities, equal, count)
    return float(np.abs(confidence - right).sum() / n.sum())


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance to the one-hot label, summed over classes (Brier 1950): 0 is best, 2 worst."""
    return float(((probabilities - np.eye(len(TITLES))[labels]) ** 2).sum(1).mean())


def nll(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood in nats."""
    return float(log_loss(labels, _proper(probabilities), labels=range(len(TITLES))))


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """accuracy, ece_mass, ece_width (15 bins), brier and nll."""
    return {
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "ece_mass": ece(labels, probabilities, "mass"),
        "ece_width": ece(labels, probabilities, "width"),
        "brier": brier(labels, probabilities),
        "nll": nll(labels, probabilities),
    }


def temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The T > 0 for which softmax(logits / T) has the least negative log-likelihood (Guo et al. 2017)."""
    logits = np.log(_proper(probabilities))

    def loss(log_t: float) -> float:
        return -float(log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def scaled(probabilities: np.ndarray, t: float) -> np.ndarray:
    """Probabilities at temperature `t`: above 1 less sure, below 1 surer; the winner stays."""
    return softmax(np.log(_proper(probabilities)) / t, axis=1)


def calibrated(labels: np.ndarray, probabilities: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Probabilities (n, 8) after temperature scaling, and the temperature of each part, fitted on the other parts."""
    out, fitted = np.empty(probabilities.shape), []
    for inside, outside in _cross(parts):
        fitted.append(temperature(labels[outside], probabilities[outside]))
        out[inside] = scaled(probabilities[inside], fitted[-1])
    return out, fitted


def coverage_curve(labels: np.ndarray, probabilities: np.ndarray, points: int = 100) -> pd.DataFrame:
    """Accuracy on the surest share of the images (Geifman and El-Yaniv 2017): coverage, n, accuracy, low, high.

    low, high: Wilson's 95 % interval, at each point by itself.
    """
    right = (probabilities.argmax(1) == labels)[np.argsort(-probabilities.max(1), kind="stable")]
    kept = np.unique(np.linspace(1, len(right), min(points, len(right))).round().astype(int))
    hits = right.cumsum()[kept - 1]
    rows = [(n / len(right), n, h / n, *wilson(int(h), int(n))) for n, h in zip(kept, hits)]
    return pd.DataFrame(rows, columns=["coverage", "n", "accuracy", "low", "high"])


def abstention(
    labels: np.ndarray,
    probabilities: np.ndarray,
    parts: np.ndarray,
    wanted: float = 0.995,
    temperatures: Sequence[float] | None = None,
) -> dict:
    """Leaves the least sure cells to a human so that the rest is right in the share `wanted`.

    The least confidence that is kept is chosen on the other parts, as the lowest that reaches `wanted` there. Gives
    coverage (share kept), kept, wrong (among them), accuracy with low and high.
    """

    def fit(given: np.ndarray, truth: np.ndarray) -> float:
        confidence = given.max(1)
        order = np.argsort(-confidence, kind="stable")
        right, confidence = (given.argmax(1) == truth)[order], confidence[order]
        last = np.append(confidence[1:] < confidence[:-1], True)  # of those that are equally sure, which go together
        good = np.flatnonzero(last & (right.cumsum() / np.arange(1, len(right) + 1) >= wanted))
        return float(confidence[good[-1]]) if len(good) else np.inf

    kept = np.zeros(len(labels), dtype=bool)
    for inside, outside, seen in _tempered(probabilities, parts, temperatures):
        kept[inside] = seen[inside].max(1) >= fit(seen[outside], labels[outside])
    n, hits = int(kept.sum()), int((probabilities.argmax(1) == labels)[kept].sum())
    low, high = wilson(hits, n) if n else (np.nan, np.nan)
    accuracy = hits / n if n else np.nan
    return {
        "coverage": n / len(labels),
        "kept": n,
        "wrong": n - hits,
        "accuracy": accuracy,
        "low": low,
        "high": high,
    }


def prediction_sets(
    labels: np.ndarray,
    probabilities: np.ndarray,
    parts: np.ndarray,
    level: float,
    temperatures: Sequence[float] | None = None,
) -> np.ndarray:
    """Split conformal sets, bool (n, 8): the classes that are to hold the true one with probability `level`.

    Score 1 - p of the true class, threshold its ceil((m + 1) level)-th smallest of the m images in the other parts
    (Sadinle et al. 2019; Vovk et al. 2005). A set may be empty, which says that the cell is like none of those seen.
    """
    if not 0 < level < 1:
        raise BloodcellError(f"A level of {level} is no probability: give one between 0 and 1, such as 0.95.")
    sets = np.zeros(probabilities.shape, dtype=bool)
    for inside, outside, seen in _tempered(probabilities, parts, temperatures):
        score = np.sort(1 - seen[outside, labels[outside]])
        rank = int(np.ceil((len(score) + 1) * level))
        limit = score[rank - 1] if rank <= len(score) else np.inf
        sets[inside] = 1 - seen[inside] <= limit
    return sets


def set_scores(labels: np.ndarray, sets: np.ndarray) -> dict[str, float]:
    """coverage with low and high (Wilson), worst_class (least coverage of a class), size (mean), empty."""
    inside, size = sets[np.arange(len(labels)), labels], sets.sum(1)
    low, high = wilson(int(inside.sum()), len(labels))
    return {
        "coverage": float(inside.mean()),
        "low": low,
        "high": high,
        "worst_class": float(min(inside[labels == k].mean() for k in np.unique(labels))),
        "size": float(size.mean()),
        "empty": float((size == 0).mean()),
    }


def interval(
    measure: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    probabilities: np.ndarray,
    resamples: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """`measure(labels, probabilities)` with half the width of its 95 % bootstrap over images to either side, from 0 up.

    Not the percentiles themselves: a calibration error found from few images is too large (Kumar et al. 2019), one
    found from draws of these is so twice, and its percentiles may leave out what was found.
    """
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(labels), len(labels)) for _ in range(resamples))
    low, high = np.quantile([measure(labels[at], probabilities[at]) for at in draws], [0.025, 0.975])
    found, half = measure(labels, probabilities), (high - low) / 2
    return float(max(0.0, found - half)), float(found + half)


def _cross(parts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(inside, outside) indices for each part. Raises BloodcellError for a single part."""
    found = np.unique(parts)
    if len(found) < 2:
        raise BloodcellError("All images are of one part, and nothing is left to fit on: give two parts or more.")
    return [(np.flatnonzero(parts == k), np.flatnonzero(parts != k)) for k in found]


def _tempered(
    probabilities: np.ndarray, parts: np.ndarray, temperatures: Sequence[float] | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(inside, outside, probabilities (n, 8) at the part's temperature) for each part."""
    sides = _cross(parts)
    for (inside, outside), t in zip(sides, temperatures or [1.0] * len(sides), strict=True):
        yield inside, outside, probabilities if t == 1 else scaled(probabilities, t)


def _proper(probabilities: np.ndarray) -> np.ndarray:
    """float64 without zeros, which a record's half precision may hold; rows sum to 1."""
    above = np.maximum(probabilities.astype(np.float64), SMALLEST)
    return above / above.sum(1, keepdims=True)
