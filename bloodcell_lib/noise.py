"""Labels that look wrong: confident learning (Northcutt, Jiang and Chuang 2021), by cleanlab.

labels int (n,) in 0..7; probabilities float (n, 8), rows sum to 1, from networks that were not trained on the image
that they judge. What is found is where networks and label disagree beyond what the class's own confidence allows: a
wrong label, or a hard cell whose label is right. Only an expert at the picture can tell which.
"""

from __future__ import annotations

import warnings

import numpy as np

from bloodcell_lib.cells import NAMES
from bloodcell_lib.errors import BloodcellError


def suspects(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Indices of the labels that look wrong, int64 (k,), the least credible first.

    From each pair of classes as many are taken as `joint` estimates, those whose probabilities differ most ("prune by
    noise rate" in the paper); ordered by self-confidence, the probability of the label given.
    """
    _check(labels, probabilities)
    with warnings.catch_warnings():  # in a notebook its progress bar asks for widgets
        warnings.simplefilter("ignore")
        from cleanlab.filter import find_label_issues  # here, as below: it takes a second to load
    # One process: several would take longer to start than the search does.
    found = find_label_issues(labels, probabilities, n_jobs=1)
    at = np.flatnonzero(found)
    return at[np.argsort(probabilities[at, labels[at]], kind="stable")]


def joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Estimated share of images by label given (row) and true class (column): float64 (8, 8), sums to 1.

    Counts images that reach a class's mean self-confidence (the paper's confident joint), scaled to the labels given.
    """
    from cleanlab.count import estimate_joint

    _check(labels, probabilities)
    return np.asarray(estimate_joint(labels, probabilities), dtype=np.float64)


def given_if_true(shares: np.ndarray) -> np.ndarray:
    """The noise matrix of a `joint`: probability of the label given (row) if the true class is the column; 0 for a
    class that no image is estimated to have."""
    total = shares.sum(0, keepdims=True)
    return np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)


def _check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    absent = [name for k, name in enumerate(NAMES) if not (labels == k).any()]
    if absent:
        raise BloodcellError(f"No image is labelled {absent[0]}: give predictions on images of all eight classes.")
    if probabilities.shape != (len(labels), len(NAMES)) or not np.isfinite(probabilities).all():
        raise BloodcellError(
            f"Probabilities {probabilities.shape} do not fit {len(labels)} labels: give eight numbers for each image."
        )
