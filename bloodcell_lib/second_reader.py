"""A second reader: what networks of other recipes say of the images that the best recipe's networks name wrongly.

Each network judges only images that it was not trained on. Where recipes of another architecture, size or length all
contradict a label in the same way, it is wrong, or the cell looks like another type, or all have learnt the same
mistake: they are no independent readers, for they share images and labels.
"""

from __future__ import annotations

import pandas as pd

from bloodcell_lib.cells import TITLES
from bloodcell_lib.compare import out_of_fold
from bloodcell_lib.latex import count, join, number, plural
from bloodcell_lib.numbers import Study

FIRST = "best"
READERS = {
    "main": "the main recipe",
    "magnified": "the best recipe magnified",
    "best_short": "the best recipe cut short",
}


def calls(study: Study) -> pd.DataFrame:
    """What each cross-validated recipe calls each image: int (n, recipes), by (label, name), the best recipe first.

    Of one seed; empty before the best recipe is cross-validated.
    """
    found = {name: out_of_fold(study.folds(name)) for name in (FIRST, *READERS)}
    if found[FIRST].empty:
        return pd.DataFrame()
    seed = found[FIRST].columns[0]
    called = {name: frame[seed] for name, frame in found.items() if seed in frame.columns}
    return pd.concat(called, axis=1, join="inner")


def mistakes(called: pd.DataFrame) -> pd.DataFrame:
    """The rows of `calls` that the best recipe names wrongly."""
    return called if called.empty else called[called[FIRST] != called.index.get_level_values("label")]


def agreed(wrong: pd.DataFrame) -> pd.Series:
    """To which of the `mistakes` every recipe gives the same answer, bool."""
    return wrong.eq(wrong[FIRST], axis=0).all(axis=1)


def pairs(study: Study) -> pd.DataFrame:
    """The best recipe's mistakes by label and answer, the most frequent first: how many, to how many of them each other
    recipe gives the same answer, and to how many all do. Empty before the best recipe is cross-validated."""
    wrong = mistakes(calls(study))
    if wrong.empty:
        return pd.DataFrame()
    same = wrong[wrong.columns[1:]].eq(wrong[FIRST], axis=0).rename(columns=READERS)
    same.insert(0, "mistakes", 1)
    same["all agree"] = agreed(wrong)
    sides = {"label": wrong.index.get_level_values("label"), "called": wrong[FIRST]}
    by = [pd.Index([TITLES[k] for k in ids], name=side) for side, ids in sides.items()]
    return same.groupby(by).sum().sort_values("mistakes", ascending=False, kind="stable")


def sentence(study: Study) -> str:
    """Where the best recipe's mistakes lie, and how many all others make too; "" without another recipe."""
    called = calls(study)
    wrong = mistakes(called)
    if wrong.shape[1] < 2 or wrong.empty:
        return ""
    touched = pd.Series([*wrong.index.get_level_values("label"), *wrong[FIRST]]).value_counts()
    same = {READERS[name]: int((wrong[name] == wrong[FIRST]).sum()) for name in wrong.columns[1:]}
    told = (
        f"Of the best recipe's {plural(len(wrong), 'mistake')} outside of training, {touched.iloc[0]} have "
        f"{TITLES[touched.index[0]].lower()} as their label or as the answer. Networks of other recipes, which did not "
        f"see these images either, give the same wrong answer: {join([f'{who} to {n}' for who, n in same.items()])}"
    )
    if len(same) > 1:
        told += f", all to {int(agreed(wrong).sum())}"
    share = number(100 * agreed(wrong).sum() / len(called), 1)
    return (
        rf"{told} ({share}\,\% of {count(len(called))}). There the label is wrong, the cell looks like another type, "
        "or all have learnt the same mistake from the same images."
    )
