"""Which of the labels look wrong, by networks that were not trained on them, and what training without them gives.

Names of files only, never pictures. A suspect is a disagreement, not an error: see `noise`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bloodcell_lib import noise, plans
from bloodcell_lib.analysis import Subject
from bloodcell_lib.cells import TITLES, finer_type
from bloodcell_lib.compare import difference, out_of_fold
from bloodcell_lib.evaluate import wilson
from bloodcell_lib.trust import out_of_sample

LISTED = 100  # suspects that a record names, at most
RESAMPLES, FEWER = 200, 50  # of the interval of the share of wrong labels; fewer in a demo


def analyse(subject: Subject) -> dict[str, Any]:
    """The suspects, least credible first; how many of each class; the noise that is estimated; training without them.

    `wrong` is the estimated share of wrong labels with a 95 % percentile bootstrap over images; it holds the networks'
    surest mistakes too, and so tends to be too high.
    """
    folds = subject.folds()
    labels, probabilities, _ = out_of_sample(subject)
    names = [name for _, held_out in folds for name in held_out.names]
    found = noise.suspects(labels, probabilities)
    shares = noise.joint(labels, probabilities)
    resamples = FEWER if plans.profile(subject.profile).disposable else RESAMPLES
    low, high = wrong_interval(labels, probabilities, resamples)
    return {
        "runs": [f"{record.experiment}/seed{record.seed}" for record, _ in folds],
        "images": len(labels),
        "suspected": len(found),
        "suspects": suspect_table(names, labels, probabilities, found).head(LISTED).to_dict("records"),
        "by_class": by_class(labels, found),
        "noise": noise.given_if_true(shares),
        "wrong": {"share": 1 - np.trace(shares), "low": low, "high": high},
        "cleaned": cleaned(subject),
    }


def suspect_table(names: list[str], labels: np.ndarray, probabilities: np.ndarray, found: np.ndarray) -> pd.DataFrame:
    """name, finer ("" if the name tells none), given and suggested (titles), self_confidence (of the label given) and
    confidence (of the suggested class) of the images at `found`, in that order."""
    suggested = probabilities[found].argmax(1)
    return pd.DataFrame(
        {
            "name": [names[i] for i in found],
            "finer": [finer_type(names[i], labels[i]) for i in found],
            "given": np.take(TITLES, labels[found]),
            "suggested": np.take(TITLES, suggested),
            "self_confidence": probabilities[found, labels[found]].round(4),
            "confidence": probabilities[found, suggested].round(4),
        }
    )


def by_class(labels: np.ndarray, found: np.ndarray) -> list[dict[str, Any]]:
    """class, images, suspected, share with low and high (Wilson, 95 %), for the label given."""
    rows = []
    for label, title in enumerate(TITLES):
        n, hits = int((labels == label).sum()), int((labels[found] == label).sum())
        low, high = wilson(hits, n)
        rows.append({"class": title, "images": n, "suspected": hits, "share": hits / n, "low": low, "high": high})
    return rows


def wrong_interval(labels: np.ndarray, probabilities: np.ndarray, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the estimated share of wrong labels, over images within each class."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in range(len(TITLES))]
    drawn = []
    for _ in range(resamples):
        at = np.concatenate([rng.choice(inside, len(inside)) for inside in members])
        drawn.append(1 - np.trace(noise.joint(labels[at], probabilities[at])))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def cleaned(subject: Subject) -> dict[str, Any] | None:
    """The five folds trained without the suspects among their training images, against the five as they are.

    Paired on the same held-out images, whose labels stay as given; None for another recipe than `best_short`, and until
    both are recorded with a common seed (`bloodcell study --experiments best_short,cv_short,cv_pair`, then `cv_clean`).
    accuracy and interval as fractions; the difference, without less with, in points (see `compare.difference`).
    `earlier.suspected` says what bias remains.
    """
    if subject.experiment != plans.BASES["labels"]:
        return None
    parts = {"with": plans.FOLDS[subject.experiment], "without": [f"cv_clean{k}" for k in range(5)]}
    frames = {key: out_of_fold([subject.of(name) for name in names]) for key, names in parts.items()}
    seeds = [seed for seed in frames["with"].columns if seed in frames["without"].columns]
    if not seeds:
        return None
    runs = [record for k in range(5) for record in subject.of(f"cv_clean{k}") if record.seed in seeds]
    found: dict[str, Any] = {
        "seeds": seeds,
        "images": len(frames["with"]),
        "left_out": [record.info["data"]["left_out"] for record in runs],
    }
    for key in parts:
        frame = frames[key][seeds]
        share = float((frame.to_numpy() == frame.index.get_level_values("label").to_numpy()[:, None]).mean())
        low, high = wilson(share * len(frame), len(frame))
        found[key] = {"accuracy": share, "low": low, "high": high}
    return found | {"difference": difference(frames["without"], frames["with"])._asdict()}
