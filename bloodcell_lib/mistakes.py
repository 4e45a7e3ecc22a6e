"""Which cells the networks get wrong: by finer type, the surest and the least sure, and where they lie among others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE

from bloodcell_lib import plans
from bloodcell_lib.analysis import Subject, outputs
from bloodcell_lib.cells import TITLES, finer_type
from bloodcell_lib.compare import difference
from bloodcell_lib.data import CellImages
from bloodcell_lib.evaluate import by_image, wilson
from bloodcell_lib.trust import out_of_sample, probabilities

LISTED = 24  # names in each list
MAPPED, FEWER = 1_000, 160  # images in the map, at most; fewer in a demo


def analyse(subject: Subject) -> dict[str, Any]:
    """Recall of each finer type, out of sample; the surest mistakes and the least sure cells; a map of the features.

    `folds` judge the first two: each image by a network that was not trained on it. The map is of one network, the
    first run's, and of its validation images, since two networks' features cannot be compared.
    """
    folds = subject.folds()
    labels, given, _ = out_of_sample(subject)
    names = [name for _, held_out in folds for name in held_out.names]
    record = subject.records[0]
    held_out = subject.held_out(record)
    most = FEWER if plans.profile(subject.profile).disposable else MAPPED
    return {
        "runs": [f"{record.experiment}/seed{record.seed}" for record, _ in folds],
        "images": len(labels),
        "mistakes": int((given.argmax(1) != labels).sum()),
        "finer": by_finer_type(names, labels, given.argmax(1)),
        "surest": listed(names, labels, given, surest_mistakes(labels, given)),
        "least_sure": listed(names, labels, given, np.argsort(given.max(1), kind="stable")),
        **({"finer_labels": taught_finer(subject)} if subject.experiment == plans.BASES["labels"] else {}),
        "map": {
            "run": f"{record.experiment}/seed{record.seed}",
            **feature_map(subject.network(record), held_out, most),
        },
    }


def by_finer_type(names: list[str], labels: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """class, finer ("" where names tell none), images, right, recall with low and high (Wilson, 95 %), and called: how
    many went to which other class. Only what occurs, in the order of the classes, "" last."""
    frame = pd.DataFrame({"label": labels, "finer": list(map(finer_type, names, labels)), "called": predicted})
    rows = []
    for (label, kind), part in frame.groupby(["label", "finer"], sort=False):
        right = int((part["called"] == label).sum())
        low, high = wilson(right, len(part))
        called = part.loc[part["called"] != label, "called"].value_counts()
        rows.append(
            {
                "class": TITLES[label],
                "finer": kind,
                "images": len(part),
                "right": right,
                "recall": right / len(part),
                "low": low,
                "high": high,
                "called": {TITLES[k]: int(n) for k, n in called.items()},
            }
        )
    return sorted(rows, key=lambda row: (TITLES.index(row["class"]), row["finer"] == "", row["finer"]))


def surest_mistakes(labels: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Indices of the wrong predictions, the most confident first."""
    wrong = np.flatnonzero(given.argmax(1) != labels)
    return wrong[np.argsort(-given[wrong].max(1), kind="stable")]


def listed(names: list[str], labels: np.ndarray, given: np.ndarray, order: np.ndarray) -> list[dict[str, Any]]:
    """name, label and called (titles), confidence and that of the label, of the first images in `order`."""
    return [
        {
            "name": names[i],
            "label": TITLES[labels[i]],
            "called": TITLES[given[i].argmax()],
            "confidence": round(float(given[i].max()), 4),
            "of_label": round(float(given[i, labels[i]]), 4),
        }
        for i in order[:LISTED]
    ]


def taught_finer(subject: Subject) -> list[dict[str, Any]] | None:
    """What learning the finer types changes: for all cells and for each finer type of a class that has several, the
    recall of `finer_labels` less that of `experiment`, in points (see `compare.difference`); None without such runs."""
    frames = [by_image(subject.of(name)) for name in ("finer_labels", subject.experiment)]
    if any(frame.empty for frame in frames) or frames[0].columns.intersection(frames[1].columns).empty:
        return None
    kinds = pd.Series([finer_type(name, label) for label, name in frames[0].index], index=frames[0].index)
    rows = [{"class": "", "finer": "", "images": len(kinds), **difference(*frames)._asdict()}]
    for label, title in enumerate(TITLES):
        mine = kinds[kinds.index.get_level_values("label") == label]
        for kind in sorted(set(mine) - {""}) if len(set(mine)) > 1 else ():
            at = mine.index[mine == kind]
            change = difference(frames[0].loc[at], frames[1].loc[frames[1].index.intersection(at)])
            rows.append({"class": title, "finer": kind, "images": len(at), **change._asdict()})
    return rows


def feature_map(network, cells: CellImages, most: int = MAPPED, seed: int = 0) -> dict[str, Any]:
    """t-SNE (van der Maaten and Hinton 2008) of the penultimate layer's features of at most `most` images.

    images, perplexity, and lists of equal length: name, label and called (class ids), confidence, x, y (rounded; their
    scale means nothing). Near cells are alike to the network; distances between far groups say little.
    """
    rng = np.random.default_rng(seed)
    cells = cells.subset(np.sort(rng.permutation(len(cells))[:most]))
    given = probabilities(network, cells.images)
    seen = outputs(network, cells.images)[0].numpy()
    # Scikit-learn wants fewer neighbours than images; the paper advises 5 to 50.
    perplexity = min(30.0, (len(cells) - 1) / 3)
    xy = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(seen - seen.mean(0))
    return {
        "images": len(cells),
        "perplexity": perplexity,
        "name": list(cells.names),
        "label": cells.labels.tolist(),
        "called": given.argmax(1).tolist(),
        "confidence": given.max(1).round(3).tolist(),
        "x": [round(float(x), 2) for x in xy[:, 0]],
        "y": [round(float(y), 2) for y in xy[:, 1]],
    }
