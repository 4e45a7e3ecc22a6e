"""What is left of the accuracy when pictures are corrupted: every corruption of `corrupt`, severity by severity."""

from __future__ import annotations

from typing import Any

import numpy as np

from bloodcell_lib import plans
from bloodcell_lib.analysis import Subject, logits
from bloodcell_lib.corrupt import CORRUPTIONS, SEVERITIES, corrupt
from bloodcell_lib.data import CellImages
from bloodcell_lib.evaluate import bootstrap_mean, over_seeds

BASELINES = ("resnet18", "resnet18_full")  # the first that is recorded stands for 1 in the mean corruption error
DEMO_SEVERITIES, DEMO_IMAGES = (1, 3, 5), 96


def analyse(subject: Subject) -> dict[str, Any]:
    """Accuracy of the experiment's networks, of a baseline's and of its rivals' under every corruption.

    images, severities and corruptions (title, unit, levels) say what was done; `experiments` holds `judged` of each
    that is recorded; baseline is the one that mean corruption errors are relative to, or None. A demo is bounded to
    `DEMO_IMAGES` images and `DEMO_SEVERITIES`.
    """
    held_out, severities = subject.held_out(subject.records[0]), SEVERITIES
    if plans.profile(subject.profile).disposable:
        held_out, severities = spread(held_out, DEMO_IMAGES), DEMO_SEVERITIES
    right = hits(subject, held_out, severities)
    baseline = next((name for name in BASELINES if name in right), None)
    return {
        "images": len(held_out),
        "severities": severities,
        "corruptions": {
            name: {"title": row.title, "unit": row.unit, "levels": [row.levels[s - 1] for s in severities]}
            for name, row in CORRUPTIONS.items()
        },
        "experiment": subject.experiment,
        "baseline": baseline,
        "experiments": {
            name: judged(right[name], right[subject.experiment], right.get(baseline), severities) for name in right
        },
    }


def rivals(experiment: str) -> tuple[str, ...]:
    """What is set beside an experiment: remedies that change it, else the best recipe beside main, else main."""

    def trained(name: str) -> dict[str, Any]:
        """How, for how long and on what: all but what a remedy may change, the network and the augmentation."""
        own = ("name", "title", "group", "seeds", "model", "augment")
        return {field: value for field, value in vars(plans.EXPERIMENTS[name]).items() if field not in own}

    changes = plans.variants(experiment, "robustness", "confirmed")
    remedies = [name for name in changes if trained(name) == trained(experiment)]
    return tuple(remedies) or tuple(name for name in ("main", "best") if name != experiment)


def spread(cells: CellImages, most: int) -> CellImages:
    """At most so many images, evenly from the whole, which is ordered by class."""
    return cells.subset(np.linspace(0, len(cells) - 1, min(most, len(cells))).round().astype(int))


def hits(subject: Subject, cells: CellImages, severities: tuple[int, ...]) -> dict[str, dict[Any, np.ndarray]]:
    """Which images each experiment's networks name rightly: bool (seeds, n) for "clean" and (corruption, severity).

    All networks see the same corrupted pictures. Experiments that are not recorded, or held out or saw other images,
    are left out.
    """
    networks = {}
    for name in dict.fromkeys((subject.experiment, *BASELINES, *rivals(subject.experiment))):
        if records := subject.peers(name):
            networks[name] = [subject.network(record) for record in records]
    right: dict[str, dict[Any, np.ndarray]] = {name: {} for name in networks}
    labels = cells.labels.numpy()
    for key in ("clean", *((name, severity) for name in CORRUPTIONS for severity in severities)):
        images = cells.images if key == "clean" else corrupt(cells.images, *key)
        for name, group in networks.items():
            right[name][key] = np.stack([logits(network, images).argmax(1).numpy() == labels for network in group])
    return right


def judged(
    own: dict[Any, np.ndarray],
    first: dict[Any, np.ndarray],
    baseline: dict[Any, np.ndarray] | None,
    severities: tuple[int, ...],
) -> dict[str, Any]:
    """One experiment's hits in numbers.

    seeds; clean and corrupted (a list over severities for each corruption): accuracy (mean over seeds), low and high
    (Wilson), by_seed; mean: accuracy over all corruptions and severities, with low and high of a bootstrap over images;
    difference: that minus the same of `first`, in points, from paired draws of images; mce: mean corruption error.
    """
    over, reference = (np.mean([r.mean(0) for key, r in hit.items() if key != "clean"], 0) for hit in (own, first))
    return {
        "seeds": len(own["clean"]),
        "clean": over_seeds(own["clean"]),
        "corrupted": {name: [over_seeds(own[name, s]) for s in severities] for name in CORRUPTIONS},
        "mean": dict(zip(("accuracy", "low", "high"), bootstrap_mean(over))),
        "difference": dict(zip(("points", "low", "high"), bootstrap_mean(100 * (over - reference)))),
        "mce": None if baseline is None else corruption_error(own, baseline, severities),
    }


def corruption_error(
    own: dict[Any, np.ndarray], baseline: dict[Any, np.ndarray], severities: tuple[int, ...]
) -> float | None:
    """Mean over corruptions of this network's errors, summed over severities, over the baseline's.

    Hendrycks and Dietterich 2019, section 4.2, where 1 is their 100 %. None where the baseline makes no mistake.
    """
    errors = [
        [sum(1 - hit[name, severity].mean() for severity in severities) for name in CORRUPTIONS]
        for hit in (own, baseline)
    ]
    return float(np.mean(np.divide(*errors))) if min(errors[1]) > 0 else None
