"""Metrics of one set of predictions, and of the runs of one experiment, with intervals.

Labels and predicted classes are integers in 0..7; accuracies, precision, recall and F1 are fractions in [0, 1].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from statsmodels.stats.proportion import proportion_confint

from bloodcell_lib.cells import TITLES
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.records import Predictions, Record

CLASSES = range(len(TITLES))


def wilson(correct: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) for a share of `correct` in `n`; unlike the normal one it stays within [0, 1].

    `correct` may be fractional: the mean over runs. Raises BloodcellError unless 0 <= correct <= n and n > 0.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise BloodcellError(f"No interval for {correct} correct of {n}: give at least one image and no more than all.")
    low, high = proportion_confint(correct, n, alpha=1 - level, method="wilson")
    return (float(low) if correct else 0.0), (float(high) if correct < n else 1.0)  # the ends, without rounding


def over_seeds(right: np.ndarray) -> dict[str, Any]:
    """Accuracy of several networks on the same images, from hits bool (seeds, n): accuracy, low, high, by_seed.

    low and high: Wilson's 95 % interval of n images, since seeds are no further ones.
    """
    low, high = wilson(float(right.mean(0).sum()), right.shape[1])
    return {"accuracy": float(right.mean()), "low": low, "high": high, "by_seed": right.mean(1).tolist()}


def change(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """How far accuracy went from one set of images to another, in points, with its 95 % interval (Newcombe 1998,
    method 10): points, low, high. Both as `over_seeds` gives them."""
    points = after["accuracy"] - before["accuracy"]
    down = math.hypot(after["accuracy"] - after["low"], before["high"] - before["accuracy"])
    up = math.hypot(after["high"] - after["accuracy"], before["accuracy"] - before["low"])
    return {"points": 100 * points, "low": 100 * (points - down), "high": 100 * (points + up)}


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Share of images whose predicted class is their label. labels, predicted int (n,)."""
    labels, predicted = _checked(labels, predicted)
    return float((labels == predicted).mean())


def per_class(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """precision, recall, f1 (float) and support (int) of the eight classes, indexed by title; 0 where undefined."""
    labels, predicted = _checked(labels, predicted)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=list(CLASSES), zero_division=0
    )
    columns = {"precision": precision, "recall": recall, "f1": f1, "support": support.astype(int)}
    return pd.DataFrame(columns, index=pd.Index(TITLES, name="class"))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the classes that occur in labels or predictions, as scikit-learn defines it."""
    labels, predicted = _checked(labels, predicted)
    return float(f1_score(labels, predicted, average="macro", zero_division=0))


def confusion(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """int64 (8, 8): row is the label, column the prediction."""
    labels, predicted = _checked(labels, predicted)
    return confusion_matrix(labels, predicted, labels=list(CLASSES)).astype(np.int64)


def top_confusions(matrix: np.ndarray, k: int = 5) -> pd.DataFrame:
    """The `k` most frequent mistakes in a confusion matrix (8, 8): true, predicted (titles), count, share of row."""
    matrix = np.asarray(matrix)
    rows = matrix.sum(1)
    mistakes = [
        (TITLES[i], TITLES[j], int(matrix[i, j]), float(matrix[i, j] / rows[i]))
        for i in CLASSES
        for j in CLASSES
        if i != j and matrix[i, j]
    ]
    mistakes.sort(key=lambda row: -row[2])  # stable, so that ties stay in class order
    return pd.DataFrame(mistakes[:k], columns=["true", "predicted", "count", "share"])


def validated(records: Sequence[Record]) -> list[Record]:
    """Those that kept validation images aside; runs on all images keep none."""
    return [record for record in records if record.accuracy() is not None]


def leading(records: Sequence[Record]) -> list[Record]:
    """The records of main, or of the first experiment where it is absent. Raises BloodcellError if there is none."""
    if not records:
        raise BloodcellError("No records of the kind that is shown here: run an experiment first.")
    names = [record.experiment for record in records]
    name = "main" if "main" in names else names[0]
    return [record for record in records if record.experiment == name]


def pool(records: Sequence[Record]) -> Predictions:
    """The validation predictions of several runs, one after the other: an image that k runs saw stands there k times.

    Raises BloodcellError if there is no record, or one without validation images.
    """
    if not records:
        raise BloodcellError("No records to pool: run the experiment first.")
    parts = [record.validation() for record in records]
    return Predictions(
        names=tuple(name for part in parts for name in part.names),
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
    )


def overview(records: Sequence[Record]) -> dict[str, float]:
    """The runs of one experiment in numbers; runs without validation images are passed over.

    seeds and images (of one validation set); mean and std (ddof 1, nan for one seed) of the final epoch's accuracy;
    best_epoch_mean, of each run's best epoch, which flatters because the validation images chose it; low and high,
    Wilson's 95 % interval of the mean for the images of one validation set, as more seeds are no more images; macro_f1
    of all predictions pooled. Raises BloodcellError if nothing is left.
    """
    records = validated(records)
    pooled = pool(records)
    finals = np.array([record.accuracy() for record in records])
    images = len(pooled.labels) // len(records)
    low, high = wilson(finals.mean() * images, images)
    return {
        "seeds": len(records),
        "images": images,
        "mean": float(finals.mean()),
        "std": float(finals.std(ddof=1)) if len(finals) > 1 else math.nan,
        "best_epoch_mean": float(np.mean([record.accuracy("best") for record in records])),
        "low": low,
        "high": high,
        "macro_f1": macro_f1(pooled.labels, pooled.predicted),
    }


def image_index(labels: Sequence[int], names: Sequence[str]) -> pd.MultiIndex:
    """What images are told apart by, (n,): two classes may each have a file of the same name."""
    return pd.MultiIndex.from_arrays([labels, names], names=["label", "name"])


def by_image(records: Sequence[Record]) -> pd.DataFrame:
    """Predicted class, int (n, seeds): a row for each image that all these runs validated on, by (label, name).

    The records are one experiment's, each with its own seed; raises BloodcellError otherwise.
    """
    columns = {}
    for record in records:
        if record.seed in columns:
            raise BloodcellError(
                f"Two records of {record.experiment}, seed {record.seed}: give those of one profile and experiment."
            )
        run = record.validation()
        columns[record.seed] = pd.Series(run.predicted, index=image_index(run.labels, run.names))
    return pd.concat(columns, axis=1, join="inner") if columns else pd.DataFrame()


def probabilities(record: Record) -> pd.DataFrame:
    """float32 (n, 8): a row for each image that the run validated on, by (label, name)."""
    run = record.validation()
    return pd.DataFrame(run.probabilities, index=image_index(run.labels, run.names))


@functools.lru_cache(maxsize=6)  # the same for all rows of a study with as many seeds and images, so compared alike
def bootstrap_weights(seeds: int, images: int, resamples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How often each is drawn when as many are drawn with replacement: float32 (resamples, seeds), (resamples, images).

    Read-only, because they are shared.
    """
    rng = np.random.default_rng(seed)
    both = []
    for n in (seeds, images):
        weights = np.empty((resamples, n), dtype=np.float32)
        step = max(1, 2_000_000 // n)  # bounds the memory of the draws
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
            weights[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        weights.flags.writeable = False
        both.append(weights)
    return both[0], both[1]


def bootstrap_interval(values: np.ndarray, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of float32 (seeds, n), over resampled seeds and images."""
    runs, images = bootstrap_weights(*values.shape, resamples, seed)
    means = ((images @ values.T) * runs).sum(1) / values.size  # (resamples, seeds) before the sum
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_mean(values: np.ndarray, resamples: int = 2_000) -> tuple[float, float, float]:
    """Mean of `values` (n,) and its 95 % percentile interval over draws of n, the same draws for the same n."""
    return float(values.mean()), *bootstrap_interval(values[None].astype(np.float32), resamples)


def bootstrap_f1(records: Sequence[Record], resamples: int = 2_000, seed: int = 0) -> np.ndarray:
    """F1 of each class over resampled seeds and images, float (resamples, 8), 0 where undefined.

    The records are one experiment's; its spread over rows gives the intervals of class and macro F1.
    """
    frame = by_image(validated(records))
    if frame.empty:
        raise BloodcellError("No validation image that all these runs share: give the records of one experiment.")
    runs, images = bootstrap_weights(frame.shape[1], len(frame), resamples, seed)
    one_hot = np.eye(len(TITLES), dtype=np.float32)
    label = one_hot[frame.index.get_level_values("label")]  # (n, 8)
    both = np.zeros((resamples, len(TITLES)))
    either = frame.shape[1] * (images @ label).astype(float)
    for k in range(frame.shape[1]):
        said = one_hot[frame.iloc[:, k].to_numpy()]
        both += runs[:, k : k + 1] * (images @ (said * label))
        either += runs[:, k : k + 1] * (images @ said)
    return np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)


def _checked(labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape or labels.ndim != 1 or not len(labels):
        raise BloodcellError(
            f"Labels {labels.shape} and predictions {predicted.shape} do not match: give one class for each image."
        )
    for what, values in (("label", labels), ("prediction", predicted)):
        if values.min() < 0 or values.max() >= len(TITLES):
            raise BloodcellError(f"A {what} lies outside 0 to {len(TITLES) - 1}: leave out images without a label.")
    return labels, predicted
