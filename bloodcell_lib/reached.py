"""Sentences of what one recipe reaches by itself: its accuracy, its folds, its classes, its mistakes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bloodcell_lib import compare, evaluate
from bloodcell_lib.cells import TITLES
from bloodcell_lib.latex import count, join, number, plural, signed
from bloodcell_lib.numbers import Study
from bloodcell_lib.plans import CHOSEN, IN_VIEW, OURS, RECIPES


def headline(study: Study, name: str = "main") -> str:
    """The accuracy of one of RECIPES."""
    row = study.row(name)
    if not row:
        return f"{RECIPES[name].capitalize()} has not been measured yet."
    return (
        rf"With {plural(row['seeds'], 'seed')}, {RECIPES[name]} reaches {percent(row)}\,\% of "
        rf"{count(row['images'])} validation images (95\,\% interval {number(100 * row['mean_low'], 2)} to "
        rf"{number(100 * row['mean_high'], 2)}\,\%) in its final epoch."
    )


def percent(row: dict) -> str:
    """The mean accuracy of an experiment's row, and its spread where it has several seeds."""
    spread = "" if np.isnan(row["std"]) else rf" $\pm$ {number(100 * row['std'], 2)}"
    return number(100 * row["mean"], 2) + spread


def length(study: Study, name: str = "main") -> str:
    """The epochs of a recipe, with those of the ones that it goes on after."""
    *before, last = (epochs for epochs, _ in study.stages(name))
    return f"{join([*map(str, before), str(last)])} epochs in turn" if before else plural(last, "epoch")


def best_epoch(study: Study, name: str = "main") -> str:
    """How much the reference's way of picking an epoch flatters."""
    row = study.row(name)
    if not row:
        return "How much it flatters to report the best epoch, as the reference does, is not measured yet."
    best, final = 100 * row["best_epoch_mean"], 100 * row["mean"]
    told = rf"By its best epoch, which is what the reference reports, the model would read {number(best, 2)}\,\%, "
    more = number(best - final, 2)
    if float(more) == 0:
        return f"{told}as much as it has when training ends."
    return f"{told}{more} points more than it has when training ends."


def cross_validation(study: Study, name: str = "main") -> str:
    """The folds, each a split of its own."""
    parts = study.folds(name)
    made = sum(map(bool, parts))
    if not made:
        return "Stratified five-fold cross-validation is planned and not recorded yet."
    if made < len(parts):
        return f"Of the five folds of cross-validation, {made} {'is' if made == 1 else 'are'} recorded."
    judged = compare.out_of_fold(parts)
    if judged.empty:
        return "The five folds of cross-validation have no seed in common."
    share, images, interval = rightly(judged)
    told = (
        f"In stratified five-fold cross-validation, {share} of {images} images are named rightly by a network that has "
        f"not seen them ({interval})"
    )
    if name != "main":
        return f"{told}."
    scores = [100 * r.accuracy() for part in parts for r in part if r.seed in judged.columns]
    return rf"{told}; single folds lie between {number(min(scores), 2)} and {number(max(scores), 2)}\,\%."


def unseen(study: Study, name: str) -> str:
    """What a recipe of ours reaches on the four folds that are not the split; "" before these are recorded."""
    judged = compare.out_of_fold(study.folds(name)[1:])
    if judged.empty:
        return ""
    share, images, interval = rightly(judged)
    reached = f"it names {share} of {images} rightly ({interval})"
    if name in IN_VIEW:
        return f"It was made in view of what others reach on all folds, which flatters it; on four of them {reached}."
    return f"It was chosen on the split, the first fold; on the others {reached}."


def foremost(study: Study) -> str | None:
    """The recipe that speaks for all of ours: the one whose weights `predict` has once it is cross-validated, else the
    latest that is."""
    found = together(study)
    return CHOSEN if CHOSEN in found else next(reversed(found), None)


def together(study: Study) -> list[str]:
    """The recipes of ours that are cross-validated, the latest last."""
    return [name for name in OURS if not compare.out_of_fold(study.folds(name)).empty]


def over_main(study: Study) -> str:
    """By how much `foremost` is ahead of the main recipe on the images of all folds; "" before both are measured."""
    name = foremost(study)
    if not name:
        return ""
    ours, theirs = (compare.out_of_fold(study.folds(one)) for one in (name, "main"))
    ahead = compare.difference(ours, theirs)
    if not ahead.seeds:
        return ""
    p = "$<$0.001" if ahead.p < 0.001 else f"= {number(ahead.p, 3)}"
    return (
        rf"Out of fold, {RECIPES[name]} against the main one: {signed(ahead.mean)} points (95\,\% interval "
        rf"{signed(ahead.low)} to {signed(ahead.high)}, exact McNemar $p$ {p}, {plural(ahead.seeds, 'seed')})."
    )


def rightly(judged: pd.DataFrame) -> tuple[str, str, str]:
    """`compare.share` of images in words, of how many, and its interval, with the seeds where there are several."""
    share, low, high = (number(100 * value, 2) for value in compare.share(judged))
    seeds = "" if judged.shape[1] == 1 else f"mean of {judged.shape[1]} seeds, "
    return rf"{share}\,\%", count(len(judged)), rf"{seeds}95\,\% interval {low} to {high}\,\%"


def classes(study: Study, name: str = "main") -> str:
    """The classes with the lowest and highest F1."""
    pooled = study.pooled_of(name)
    if pooled is None:
        return "Scores by class are not measured yet."
    f1 = evaluate.per_class(pooled.labels, pooled.predicted)["f1"]
    macro = evaluate.macro_f1(pooled.labels, pooled.predicted)
    return (
        f"Macro F1 is {number(macro, 3)}; F1 is lowest for {f1.idxmin().lower()}s ({number(f1.min(), 3)}) and "
        f"highest for {f1.idxmax().lower()}s ({number(f1.max(), 3)})."
    )


def mistakes(study: Study, name: str = "main") -> str:
    """The three most frequent confusions."""
    pooled = study.pooled_of(name)
    if pooled is None:
        return "Its mistakes are not counted yet."
    labels, predicted = pooled.labels, pooled.predicted
    wrong = int((labels != predicted).sum())
    if not wrong:
        return f"It makes no mistake in {count(len(labels))} predictions."
    top = evaluate.top_confusions(evaluate.confusion(labels, predicted), 3)
    rows = [
        f"{_a(true)} read as {_a(said)} ({n})" for true, said, n in zip(top["true"], top["predicted"], top["count"])
    ]
    return (
        f"Of {plural(wrong, 'mistake')} in {count(len(labels))} predictions, the most frequent "
        f"{'are' if len(rows) > 1 else 'is'} {join(rows)}."
    )


def _a(title: str) -> str:
    assert title in TITLES
    return f"{'an' if title[0] in 'AEIOU' else 'a'} {title.lower()}"
