"""The study compared: each experiment against the main one, or against what it changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from bloodcell_lib.evaluate import (
    bootstrap_interval,
    by_image,
    probabilities,
    validated,
    wilson,
)
from bloodcell_lib.plans import BASES, EXPERIMENTS, TRIED
from bloodcell_lib.records import Record

# Groups of rows that are no rivals of the main model: they are judged by other images.
UNCOMPARED = {row.group for row in EXPERIMENTS.values() if row.part not in ("split", "all")}
# Groups of changes that the reference's study does not have: to the main recipe and to what followed from it.
FURTHER = ("speed", "lever", "best", "confirmed", "stage", "ablation")
BEYOND = (*FURTHER, *TRIED)

Runs = dict[str, list[Record]]  # of each experiment
COLUMNS = (
    *("title", "group", "profile", "course", "seeds", "images", "parameters", "macs"),
    *("mean", "std", "mean_low", "mean_high", "best_epoch_mean"),
    *("difference", "low", "high", "common_seeds", "p", "p_holm"),
)


class Difference(NamedTuple):
    """Accuracy of one experiment less another's, in points: mean and std over `seeds` common seeds, 95 % interval, p.

    All nan and no seeds where the two share no seed or no image.
    """

    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    seeds: int = 0


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Compares two experiments on the images and seeds that both have; each frame is one of `evaluate.by_image`.

    The interval is a percentile bootstrap that draws seeds and images with replacement, the same draws for both
    experiments. p is the exact McNemar test on predictions pooled over the common seeds: an image counts once a seed,
    as if each time were another image. They are not independent, since an image that is hard for one seed is hard for
    the next, so p is too small. The interval keeps all predictions of an image together and is the one to trust; with
    few seeds it too understates how much another seed may change.
    """
    seeds = [column for column in ours.columns if column in theirs.columns]
    images = ours.index.intersection(theirs.index, sort=False)
    if not seeds or images.empty:
        return Difference()
    right = [_hits(frame.loc[images, seeds]) for frame in (ours, theirs)]  # bool (seeds, n) each
    change = right[0].astype(np.float32) - right[1]
    by_seed = 100 * change.mean(1, dtype=float)
    low, high = bootstrap_interval(change, resamples, seed)
    won, lost = int((change > 0).sum()), int((change < 0).sum())
    p = float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0
    return Difference(float(by_seed.mean()), _std(by_seed), 100 * low, 100 * high, p, len(seeds))


def out_of_fold(parts: Sequence[Sequence[Record]]) -> pd.DataFrame:
    """`evaluate.by_image` of runs that together validated on each image once, on the seeds that all parts have.

    parts: the runs of each fold. Empty where a fold has none.
    """
    frames = [by_image(part) for part in parts]
    return pd.DataFrame() if any(frame.empty for frame in frames) else pd.concat(frames, join="inner")


def averaged(recipes: Sequence[Sequence[Sequence[Record]]]) -> pd.DataFrame:
    """What cross-validated recipes together call each image, their probabilities averaged, as `out_of_fold` has it.

    recipes: the runs of each fold of each, of which the first counts. One column, 0, on the images that all have.
    """
    each = [pd.concat(probabilities(part[0]) for part in parts) for parts in recipes]
    found = pd.concat(each, axis=1, join="inner")
    mean = found.to_numpy().reshape(len(found), len(each), -1).mean(1)
    return pd.DataFrame({0: mean.argmax(1)}, index=found.index)


def share(judged: pd.DataFrame) -> tuple[float, float, float]:
    """The share of `out_of_fold`'s images that are named rightly, its mean over seeds, with a 95 % interval: Wilson's
    for one seed, else the bootstrap over seeds and images."""
    hits = _hits(judged)
    right, n = hits.mean(), len(judged)
    interval = wilson(right * n, n) if len(hits) == 1 else bootstrap_interval(hits.astype(np.float32), 10_000)
    return float(right), *interval


def disagreements(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """What McNemar's test counts: int (2, 2), a row where we are right or wrong, a column where they are.

    Over the seeds and images that both have, an image once a seed, as `difference` takes them.
    """
    seeds = [column for column in ours.columns if column in theirs.columns]
    images = ours.index.intersection(theirs.index, sort=False)
    we, they = (_hits(frame.loc[images, seeds]) for frame in (ours, theirs))
    words = {"right": True, "wrong": False}
    return pd.DataFrame(
        {column: {row: int(((we == a) & (they == b)).sum()) for row, a in words.items()} for column, b in words.items()}
    )


def study_table(
    records: Sequence[Record], reference: str = "main", resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """One row for each experiment that validated, in the order of the records, indexed by its name.

    title, group, profile, course (whether on the course's images), seeds, images (of one validation set), parameters,
    macs. Fractions: mean and std over seeds of the final epoch's accuracy (ddof 1, nan for one seed), mean_low and
    mean_high (bootstrap over seeds and images), best_epoch_mean. In points: difference to `reference`, or to what
    `plans.BASES` names for the group, with low and high, on common_seeds. p: exact McNemar; p_holm: the same corrected
    over a family, which is the reference's study with the rows that mirror it, or one group beyond it. `difference`
    says how far to trust which. The folds of the cross-validation, and networks that a class was kept from, are not
    compared. nan where nothing is shared with the reference, or where it is absent. Raises BloodcellError for two
    records of one experiment and seed.
    """
    runs = by_experiment(records)
    frames = {name: by_image(group) for name, group in runs.items()}
    rows = {}
    for name, group in runs.items():
        info, frame = group[0].info, frames[name]
        finals = np.array([record.accuracy() for record in group])
        empty = frame.empty
        low, high = (
            (math.nan, math.nan) if empty else bootstrap_interval(_hits(frame).astype(np.float32), resamples, seed)
        )
        base = BASES.get(info["group"], reference)
        compared = base in frames and name != base and info["group"] not in UNCOMPARED
        against = difference(frame, frames[base], resamples, seed) if compared else Difference()
        rows[name] = {
            "title": title_of(name, info["title"]),
            "group": info["group"],
            "profile": group[0].profile,
            "course": all(record.info["data"]["course"] for record in group),
            "seeds": len(group),
            "images": info["data"]["validation"],
            "parameters": info["model"]["parameters"],
            "macs": info["model"]["macs"],
            "mean": finals.mean(),
            "std": _std(finals),
            "mean_low": low,
            "mean_high": high,
            "best_epoch_mean": np.mean([record.accuracy("best") for record in group]),
            "difference": against.mean,
            "low": against.low,
            "high": against.high,
            "common_seeds": against.seeds,
            "p": against.p,
            "p_holm": math.nan,
        }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("experiment")
    tested = table[table["p"].notna()]
    for _, family in tested.groupby(tested["group"].where(tested["group"].isin(BEYOND), "study")):
        table.loc[family.index, "p_holm"] = holm(family["p"].to_numpy())
    return table


def holm(p: np.ndarray) -> np.ndarray:
    """p values, float (n,), corrected for being n (Holm 1979, a step down from the smallest).

    Ours, since statsmodels collects garbage in each call, which took more time than all else in `study_table`.
    """
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


def of_study(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `study_table` that are the reference's study or mirror it, without folds and what goes beyond."""
    return table[~table["group"].isin((*BEYOND, *UNCOMPARED))]


def by_experiment(records: Sequence[Record]) -> Runs:
    """Those that validated, by the name of their experiment."""
    runs: Runs = {}
    for record in validated(records):
        runs.setdefault(record.experiment, []).append(record)
    return runs


def title_of(name: str, recorded: str = "") -> str:
    """The row's words of today, else those recorded or its name, and what was changed for a run by hand."""
    row, *changes = name.split("+")
    return ", ".join([EXPERIMENTS[row].title if row in EXPERIMENTS else recorded or row, *changes])


def in_sentence(title: str) -> str:
    """A title inside of a sentence; a proper name, as ResNet-18, keeps its capital."""
    first = title.split()[0][1:]
    return title if first != first.lower() else title[0].lower() + title[1:]


def _hits(frame: pd.DataFrame) -> np.ndarray:
    """Whether each prediction is right, bool (seeds, n)."""
    return np.equal(frame.to_numpy().T, frame.index.get_level_values("label").to_numpy())


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan
