"""Sentences of the report that depend on numbers, each chosen by a rule that the report states, never typed there.

Every sentence reads right when part of a study, or nothing at all, is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from bloodcell_lib import answers, compare, evaluate, second_reader, verdicts
from bloodcell_lib.cells import TITLES
from bloodcell_lib.compare import AGREES, DIFFERS
from bloodcell_lib.latex import count, escape, join, number, plural, signed
from bloodcell_lib.numbers import REFERENCE_EPOCHS, REFERENCE_PIXELS, Study
from bloodcell_lib.plans import EXTRA, STUDY


def sentences(study: Study) -> dict[str, str]:
    """Name without backslash -> LaTeX text."""
    return {
        "Headline": headline(study),
        "StudyState": state(study),
        "DataSentence": source(study),
        "ImageTreatment": treatment(study),
        "BudgetDeviation": deviation(study),
        "SeVerdict": verdicts.effect(study, "no_se"),
        "RegularisationVerdict": verdicts.effect(study, "reg_none"),
        "CosineVerdict": verdicts.effect(study, "lr_constant"),
        "StepVerdict": verdicts.effect(study, "lr_step"),
        "AugmentationVerdict": verdicts.effect(study, "aug_none"),
        "DepthVerdict": verdicts.effect(study, "as_described"),
        "ChangesSentence": verdicts.changes(study),
        "BestSentence": best(study),
        "BestInShort": best_in_short(study),
        "FurtherSentence": further(study),
        "SecondReaderSentence": second_reader.sentence(study),
        "FlipsSentence": verdicts.flips(study),
        "GainsSentence": verdicts.gains(study),
        "ClaimsSentence": verdicts.claims(study),
        "HolmSentence": verdicts.holm(study),
        "BudgetSentence": verdicts.budget(study),
        "RivalsSentence": verdicts.rivals(study),
        "BestEpochSentence": best_epoch(study),
        "CvSentence": cross_validation(study),
        "ClassSentence": classes(study),
        "ConfusionSentence": mistakes(study),
        "TrustSentence": trust(study),
        "UndoneSentence": undone(study),
        "ClosingSentence": closing(study),
    }


NETWORKS = {"deep_efficientnet": "DeepEfficientNet", "slim_resnet": "a slim ResNet-18"}
WHO = {"main": "the main model", "best": "the best recipe", "hardy": "the hardy recipe"}


def headline(study: Study, name: str = "main") -> str:
    """The accuracy of the main model, or of another in WHO."""
    row = study.row(name)
    if not row:
        return f"{WHO[name].capitalize()} has not been measured yet."
    spread = "" if np.isnan(row["std"]) else rf" $\pm$ {number(100 * row['std'], 2)}"
    return (
        rf"With {plural(row['seeds'], 'seed')}, {WHO[name]} reaches {number(100 * row['mean'], 2)}{spread}\,\% of "
        rf"{count(row['images'])} validation images (95\,\% interval {number(100 * row['mean_low'], 2)} to "
        rf"{number(100 * row['mean_high'], 2)}\,\%) in its final epoch."
    )


def state(study: Study) -> str:
    """Which experiments are recorded with which seeds."""
    planned = study.budget.seeds
    if not study.records:
        return "No run of the study is recorded yet; every number below that a run would give is a dash."
    done = sum(len(set(study.seeds(name)) & set(planned)) for name in STUDY)
    total = len(STUDY) * len(planned)
    if done == total:
        first = f"All {total} runs of the study are recorded ({len(STUDY)} experiments, {plural(len(planned), 'seed')})"
    else:
        first = f"The study is partial: {done} of its {total} runs are recorded ({_by_seeds(study, list(STUDY))})"
    extra = sum(len(set(study.seeds(name)) & set(planned)) for name in EXTRA)
    return first + (f"; beyond it, {plural(extra, 'run')}." if extra else "; none beyond it.")


def _by_seeds(study: Study, names: Sequence[str]) -> str:
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        groups.setdefault(study.seeds(name), []).append(STUDY[name].title)
    absent = groups.pop((), [])
    parts = []
    for seeds, titles in sorted(groups.items(), key=lambda item: -len(item[0])):
        which = f"{len(titles)} experiments" if len(titles) > 3 else join([escape(title) for title in titles])
        parts.append(f"{which} with seed{'s' * (len(seeds) > 1)} {join([str(seed) for seed in seeds])}")
    if absent:
        parts.append(f"{len(absent)} not at all")
    return "; ".join(parts)


def source(study: Study) -> str:
    """What the images were, where they were not the course's."""
    data = study.main("data")
    if not data or data["course"]:
        return ""
    if data["source"] == "synthetic cells":
        return (
            "The runs reported here used the synthetic cells that the project draws for demonstration, not "
            "photographs: their numbers say nothing about blood."
        )
    return f"The runs reported here used other images than the course's ({escape(data['source'])})."


def treatment(study: Study) -> str:
    """How a photograph becomes an input."""
    size, crop = study.budget.pixels, study.budget.crop
    cut = rf"cropped to the central {crop} $\times$ {crop} pixels, " if crop else ""
    return rf"{cut}resized to {size} $\times$ {size}"


def deviation(study: Study) -> str:
    """How the profile's budget differs from the reference's."""
    pixels, epochs = study.budget.pixels, study.budget.epochs
    stated, long = REFERENCE_PIXELS, REFERENCE_EPOCHS
    if (pixels, epochs) == (stated, long):
        return "Input size and epochs are the reference's."
    cut = f" (of the central {study.budget.crop})" if study.budget.crop else ""
    return (
        rf"The reference states {stated} $\times$ {stated} pixels and {long} epochs; the runs of the study, of the "
        rf"profile \texttt{{{escape(study.profile)}}}, have {pixels} $\times$ {pixels}{cut} and {epochs}: they test "
        "its gains at that size, and its accuracies not at all."
    )


def best_epoch(study: Study, name: str = "main") -> str:
    """How much the reference's way of picking an epoch flatters."""
    row = study.row(name)
    if not row:
        return "How much it flatters to report the best epoch, as the reference does, is not measured yet."
    best, final = 100 * row["best_epoch_mean"], 100 * row["mean"]
    return (
        rf"By its best epoch, which is what the reference reports, the model would read {number(best, 2)}\,\%, "
        f"{number(best - final, 2)} points more than it has when training ends."
    )


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
    seed = judged.columns[0]
    scores = [100 * r.info["final_validation_accuracy"] for part in parts for r in part if r.seed == seed]
    right, n, interval = _rightly(judged)
    return (
        rf"In stratified five-fold cross-validation, {number(100 * right / n, 2)}\,\% of {count(n)} images are named "
        rf"rightly by a network that has not seen them ({interval}); "
        rf"single folds lie between {number(min(scores), 2)} and {number(max(scores), 2)}\,\%."
    )


def _rightly(judged: pd.DataFrame) -> tuple[int, int, str]:
    """How many of `compare.out_of_fold`'s images its first seed names rightly, of how many, and Wilson's interval."""
    right, n = int((judged.iloc[:, 0].to_numpy() == judged.index.get_level_values("label")).sum()), len(judged)
    low, high = (100 * bound for bound in evaluate.wilson(right, n))
    return right, n, rf"95\,\% interval {number(low, 2)} to {number(high, 2)}\,\%"


def best(study: Study) -> str:
    """What the best recipe is and reaches, and by how much it is ahead on images outside each network's training."""
    if not study.runs("best"):
        return headline(study, "best")
    told = [headline(study, "best"), recipe(study), cross_validation(study, "best"), verdicts.lead(study)]
    unseen = compare.out_of_fold(study.folds("best")[1:])
    if not unseen.empty:
        right, n, interval = _rightly(unseen)
        told.append(
            rf"It was chosen on the split, the first fold; on the others it names {number(100 * right / n, 2)}\,\% of "
            rf"{count(n)} rightly ({interval})."
        )
    return " ".join(filter(None, told))


def further(study: Study) -> str:
    """What recipes reach that go on from the best one, on the split before they are cross-validated, and all averaged
    that are; "" where none is recorded."""
    told, split, recipes = [], [], [study.folds("best")]
    for name, words in CHANGED.items():
        judged = compare.out_of_fold(study.folds(name))
        if judged.empty:
            split.append(_on_the_split(study, name, words))
            continue
        (right, n, interval), info = _rightly(judged), study.runs(name)[0].info
        told += [
            rf"{words(info)}, the same recipe names {number(100 * right / n, 2)}\,\% of the {count(n)} images "
            f"rightly, each by a network that has not seen it ({interval}).",
            verdicts.lead(study, name, "best", unseen=True),
        ]
        recipes.append(study.folds(name))
    together = compare.averaged(*recipes) if len(recipes) > 1 else pd.DataFrame()
    if not together.empty:
        right, n, interval = _rightly(together)
        told.append(
            f"With the probabilities of {'both' if len(recipes) == 2 else 'all'} recipes averaged, "
            rf"{number(100 * right / n, 2)}\,\% are named rightly ({interval})."
        )
    return " ".join(filter(None, told + split))


def _on_the_split(study: Study, name: str, words: Callable[[dict], str]) -> str:
    row = study.row(name)
    if not row or not row["common_seeds"]:
        return ""
    reached = number(100 * row["mean"], 2)
    interval = rf"95\,\% interval {signed(row['low'])} to {signed(row['high'])}, {plural(row['common_seeds'], 'seed')}"
    return (
        rf"{words(study.runs(name)[0].info)}, the same recipe reaches {reached}\,\% of the split's "
        f"{count(row['images'])} validation images, {signed(row['difference'])} points from what it reaches without "
        f"({interval}); it is not cross-validated yet."
    )


def _magnified(info: dict) -> str:
    size, crop, macs = info["config"]["pixels"], info["config"]["crop"], number(info["model"]["macs"] / 1e6)
    return (
        rf"Magnified, the central {crop} pixels of a photograph as {size} $\times$ {size} ({macs} million operations)"
    )


def _hardy(info: dict) -> str:
    size, epochs = info["config"]["pixels"], info["config"]["train"]["epochs"]
    return (
        rf"Turned by any angle, scaled, stained and blurred a little at {size} $\times$ {size} pixels, which the "
        f"network halves, and trained for {epochs} epochs"
    )


CHANGED = {"magnified": _magnified, "hardy": _hardy}  # cross-validated recipes that go on from the best one


def sharpness(study: Study) -> str:
    """What it does to turn pictures before they are shrunk, and not after; "" before both can be compared."""
    after, before = (study.row(name) for name in ("short_free_rotation", "short_halved_rotation"))
    if not (after.get("common_seeds") and before.get("common_seeds")):
        return ""
    what = verdicts.start(study, "best_short")
    return (
        f"Any rotation changes {what} by {signed(after['difference'])} points if pictures are turned at the size at "
        "which they are seen, which blurs them and no picture that is judged, and by "
        f"{signed(before['difference'])} if they are shrunk afterwards."
    )


def doubts(study: Study) -> str:
    """How many labels the best recipe's networks suspect, beside the main one's; "" before both are analysed."""
    if not {"labels", "labels_best"} <= study.analyses.keys():
        return ""
    main, best = (study.analyses[name]["result"] for name in ("labels", "labels_best"))
    both = len({row["name"] for row in main["suspects"]} & {row["name"] for row in best["suspects"]})
    few = plural(best["suspected"], "label")
    told = f"The best recipe's networks suspect {few}, the main recipe's {main['suspected']}, with {both} in common"
    if 2 * both < main["suspected"]:
        told += ": most of what looks like a wrong label is a network's own mistake"
    return f"{told}."


def recipe(study: Study) -> str:
    """The best recipe in words, from its record, with what it costs beside the main one."""
    best, main = (next((run.info for run in study.runs(name)), None) for name in ("best", "main"))
    sizes = [
        f"{number(i['model']['parameters'] / 1e6, 2)} million parameters, {number(i['model']['macs'] / 1e6)} million "
        f"operations an image, {i['config']['train']['epochs']} epochs"
        for i in (best, main)
        if i
    ]
    turns = " and quarter turns" if best["config"]["augment"].get("turns") else ""
    return (
        f"It trains {_network(best)} with flips{turns} as its only augmentation and the main recipe's other settings "
        f"({'; main: '.join(sizes)})."
    )


def _network(info: dict) -> str:
    name = info["config"]["model"]["name"]
    return NETWORKS.get(name, escape(name))


def best_in_short(study: Study) -> str:
    """The best recipe's accuracy out of fold, for the abstract; "" before it is cross-validated."""
    judged = compare.out_of_fold(study.folds("best"))
    if judged.empty:
        return ""
    info, (right, n, interval) = study.runs("best")[0].info, _rightly(judged)
    size, epochs = number(info["model"]["parameters"] / 1e6, 2), info["config"]["train"]["epochs"]
    return (
        f"A recipe of ours, for {_network(info)} of {size} million parameters and {epochs} epochs, names "
        rf"{number(100 * right / n, 2)}\,\% of all {count(n)} labelled images rightly, each by a network that had not "
        f"seen it ({interval})."
    )


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


def trust(study: Study) -> str:
    """Who judged which images in the analyses of probabilities."""
    if "trust" not in study.analyses:
        return "Its analyses are not recorded yet."
    result = study.analyses["trust"]["result"]
    folds = len(result["runs"])
    who = "the networks of cross-validation" if folds > 1 else f"one network ({escape(result['runs'][0])})"
    its = "their" if folds > 1 else "its"
    return (
        f"The probabilities are those of {who}, on {count(result['images'])} images outside {its} training, with "
        "temperature, thresholds and sets fitted on other parts than they are judged on."
    )


def undone(study: Study) -> str:
    """What reading from each photograph how it was taken gains the best recipe, and the hardy one; "" before that is
    analysed of the best one."""
    if "reading_best" not in study.analyses:
        return ""
    result = study.analyses["reading_best"]["result"]
    plain, undone = (result["experiments"][kind] for kind in ("plain", "undone"))
    before, after = (answers.kept(result, kind) for kind in ("plain", "undone"))
    both = [number(100 * kind["sites"]["all"]["accuracy"], 1) for kind in (plain, undone)]
    goal, alone = number(100 * result["goals"]["alone"]), len(result["sites"]) - 1
    points = signed(undone["difference"]["points"])
    told = (
        "A second network, which taught itself to read from a photograph how it was taken, so that this can be undone, "
        f"takes the simulated sites where the best recipe keeps {goal} in a hundred of its accuracy from "
        rf"{before} to {after} of {alone}, and its accuracy where all is changed from {both[0]} to {both[1]}\,\%; "
        f"unchanged pictures: {points} points ({plural(undone['seeds'], 'seed')})."
    )
    if "reading_hardy" in study.analyses:
        result = study.analyses["reading_hardy"]["result"]
        hardy = result["experiments"]["undone"]
        changed, clean = (number(100 * row["accuracy"], 1) for row in (hardy["sites"]["all"], hardy["clean"]))
        told += (
            " Trained with any rotation and a little scale, stain and blur, for twice as many epochs, the same network "
            rf"keeps as much at {answers.kept(result, 'undone')}, and {changed}\,\% where all is changed; {clean}\,\% "
            "of unchanged pictures are named rightly."
        )
    return told


def closing(study: Study) -> str:
    """The conclusion's last word on the headline claim, by the verdict of the claims table."""
    verdict = study.claims.loc["main_accuracy", "verdict"]
    stated = escape(study.claims.loc["main_accuracy", "stated"])
    if verdict == AGREES:
        return f"The validation accuracy of {stated} is within reach of the network that its author describes."
    if verdict == DIFFERS:
        measured = escape(study.claims.loc["main_accuracy", "measured"])
        return f"The validation accuracy of {stated} is not what we measure in the same way, {measured}."
    measured = escape(study.claims.loc["main_accuracy", "measured"])
    smaller = f"; at a smaller size and with fewer epochs we measure {measured}" if measured else ""
    return f"Whether the validation accuracy of {stated} can be reached is still open here{smaller}."


def _a(title: str) -> str:
    assert title in TITLES
    return f"{'an' if title[0] in 'AEIOU' else 'a'} {title.lower()}"
