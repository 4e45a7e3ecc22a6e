"""Second opinions: what networks of other recipes say of the images that the networks of one recipe name wrongly.

That recipe is `reached.foremost`. Those whose networks it went on training, and those that went on training its own,
are not asked. Each network judges only images that it was not trained on. Where recipes of another architecture, size
or length all contradict a label in the same way, it is wrong, or the cell looks like another type, or all have learnt
the same mistake: they are no independent opinions, for they share images and labels.
"""

from __future__ import annotations

import pandas as pd

from bloodcell_lib.cells import TITLES
from bloodcell_lib.compare import out_of_fold
from bloodcell_lib.latex import count, number, plural
from bloodcell_lib.numbers import Study
from bloodcell_lib.plans import RECIPES
from bloodcell_lib.reached import foremost


def calls(study: Study) -> pd.DataFrame:
    """What each cross-validated recipe calls each image: int (n, recipes), by (label, name); first comes the one whose
    mistakes are read. Of one seed; empty before there is one.
    """
    first = foremost(study)
    if not first:
        return pd.DataFrame()
    asked = [name for name in RECIPES if name not in study.ancestors(first) and first not in study.ancestors(name)]
    found = {name: frame for name in asked if not (frame := out_of_fold(study.folds(name))).empty}
    seed = found[first].columns[0]
    called = {name: frame[seed] for name, frame in {first: found[first], **found}.items() if seed in frame.columns}
    return pd.concat(called, axis=1, join="inner")


def mistakes(called: pd.DataFrame) -> pd.DataFrame:
    """The rows of `calls` that the first recipe names wrongly."""
    return called if called.empty else called[called.iloc[:, 0] != called.index.get_level_values("label")]


def agreed(wrong: pd.DataFrame) -> pd.Series:
    """To which of the `mistakes` every recipe gives the same answer, bool."""
    return wrong.eq(wrong.iloc[:, 0], axis=0).all(axis=1)


def pairs(study: Study) -> pd.DataFrame:
    """The first recipe's mistakes by label and answer, the most frequent first: how many, to how many of them each
    other recipe gives the same answer, and to how many all do. Empty before there is a first."""
    wrong = mistakes(calls(study))
    if wrong.empty:
        return pd.DataFrame()
    answer = wrong.iloc[:, 0]
    same = wrong.iloc[:, 1:].eq(answer, axis=0).rename(columns=RECIPES)
    same.insert(0, "mistakes", 1)
    if wrong.shape[1] > 1:
        same["all agree"] = agreed(wrong)
    sides = {"label": wrong.index.get_level_values("label"), "called": answer}
    by = [pd.Index([TITLES[k] for k in ids], name=side) for side, ids in sides.items()]
    return same.groupby(by).sum().sort_values("mistakes", ascending=False, kind="stable")


def sentence(study: Study) -> str:
    """Where the first recipe's mistakes lie, and how many all others make too; "" without another recipe."""
    called = calls(study)
    wrong = mistakes(called)
    if wrong.shape[1] < 2 or wrong.empty:
        return ""
    first, *others = wrong.columns
    touched = pd.Series([*wrong.index.get_level_values("label"), *wrong[first]]).value_counts()
    same = sorted(int((wrong[name] == wrong[first]).sum()) for name in others)
    seed = ", of its first seed" if out_of_fold(study.folds(first)).shape[1] > 1 else ""
    told = (
        f"Of {RECIPES[first]}'s {plural(len(wrong), 'mistake')} outside of training{seed}, {touched.iloc[0]} have "
        f"{TITLES[touched.index[0]].lower()} as their label or as the answer. The networks of "
    )
    if len(others) == 1:
        told += f"{RECIPES[others[0]]}, which did not see these images either, give the same wrong answer to {same[0]}"
    else:
        told += (
            f"{len(others)} other recipes, which did not see these images either, give the same wrong answer to "
            f"{same[0]} to {same[-1]}, all to {int(agreed(wrong).sum())}"
        )
    share = number(100 * agreed(wrong).sum() / len(called), 1)
    return (
        rf"{told} ({share}\,\% of {count(len(called))}). There the label is wrong, the cell looks like another type, "
        "or all have learnt the same mistake from the same images."
    )
