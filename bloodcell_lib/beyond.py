"""Sentences of what goes beyond the reference: recipes of our own, what led to them, what they are worth elsewhere.

Each is "" or says so where what it tells is not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pandas as pd

from bloodcell_lib import answers
from bloodcell_lib.compare import BEYOND, Difference, averaged, difference, in_sentence, out_of_fold, title_of
from bloodcell_lib.latex import count, escape, join, number, plural, signed
from bloodcell_lib.numbers import Study
from bloodcell_lib.plans import BASES, EXTRA, RECIPES
from bloodcell_lib.reached import cross_validation, foremost, headline, rightly, unseen
from bloodcell_lib.verdicts import JUDGED, moved

NETWORKS = {"deep_efficientnet": "DeepEfficientNet", "slim_resnet": "a slim ResNet-18"}
CHANGES = set(BEYOND) - {"best"}  # groups whose rows change one thing, or a few that go together


def best(study: Study) -> str:
    """What the best recipe is and reaches, and by how much it is ahead on images outside each network's training."""
    if not study.runs("best"):
        return headline(study, "best")
    told = [headline(study, "best"), recipe(study), cross_validation(study, "best"), lead(study)]
    return " ".join(filter(None, [*told, unseen(study, "best")]))


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
    """The accuracy out of fold of `foremost`, for the abstract; "" before there is one."""
    name = foremost(study)
    if not name:
        return ""
    info, (share, images, interval) = study.runs(name)[0].info, rightly(out_of_fold(study.folds(name)))
    size, epochs = number(info["model"]["parameters"] / 1e6, 2), info["config"]["train"]["epochs"]
    return (
        f"A recipe of ours, for {_network(info)} of {size} million parameters and {epochs} epochs, names {share} of "
        f"all {images} labelled images rightly, each by a network that had not seen it ({interval}); it was chosen on "
        "a fifth of them."
    )


def lead(study: Study) -> str:
    """By how much the best recipe is ahead of the main one, out of fold; "" before both are cross-validated."""
    ahead = difference(*(out_of_fold(study.folds(name)) for name in ("best", "main")))
    if not ahead.seeds:
        return ""
    return (
        rf"It names {_points(ahead)} of these images rightly than {RECIPES['main']} does (95\,\% interval of the "
        f"difference {_between(ahead)}, over images, one network a fold)."
    )


def gain(study: Study, name: str) -> str:
    """By how much a recipe that goes on from the best one is ahead of it, on the folds that had no say in what it is,
    all but the split, as the end of a parenthesis; "" before both are cross-validated."""
    ours, theirs = (study.folds(one)[1:] for one in (name, "best"))
    ahead = difference(out_of_fold(ours), out_of_fold(theirs))
    if not ahead.seeds:
        return ""
    return f"; on the {len(ours)} folds that had no say in this {signed(ahead.mean)} points, {_between(ahead)}"


def _points(ahead: Difference) -> str:
    return f"{number(abs(ahead.mean), 2)} points {'more' if ahead.mean > 0 else 'less'}"


def _between(ahead: Difference) -> str:
    return f"{signed(ahead.low)} to {signed(ahead.high)}"


def further(study: Study) -> str:
    """What recipes reach that go on from the best one, on the split before they are cross-validated, and all averaged
    that are; "" where none is recorded."""
    told, split, recipes = [], [], [study.folds("best")]
    for name, words in CHANGED.items():
        judged = out_of_fold(study.folds(name))
        if judged.empty:
            split.append(_on_the_split(study, name, words))
            continue
        (share, images, interval), info = rightly(judged), study.runs(name)[0].info
        told.append(f"{words(info)}, it names {share} of the {images} rightly ({interval}{gain(study, name)}).")
        recipes.append(study.folds(name))
    together = averaged(*recipes) if len(recipes) > 1 else pd.DataFrame()
    if not together.empty:
        share, _, interval = rightly(together)
        both = "both" if len(recipes) == 2 else "all"
        told.append(f"With the probabilities of {both} recipes averaged, {share} are named rightly ({interval}).")
    told.append(symmetric(study))
    return " ".join(filter(None, told + split))


def symmetric(study: Study) -> str:
    """What most recipes reach together, and averaged over the symmetries; "" before that is analysed."""
    results = (content["result"].get("together") for content in study.analyses.values())
    found = max(filter(None, results), key=lambda result: len(result["experiments"]), default=None)
    if found is None:
        return ""
    share, low, high = (number(100 * found["tta"][key], 2) for key in ("accuracy", "low", "high"))
    return (
        rf"Over the eight symmetries too, {join([RECIPES[name] for name in found['experiments']])} together name "
        rf"{share}\,\% rightly (95\,\% interval {low} to {high}\,\%)."
    )


def _on_the_split(study: Study, name: str, words: Callable[[dict], str]) -> str:
    row = study.row(name)
    if not row or not row["common_seeds"]:
        return ""
    reached = number(100 * row["mean"], 2)
    interval = rf"95\,\% interval {signed(row['low'])} to {signed(row['high'])}, {plural(row['common_seeds'], 'seed')}"
    return (
        rf"{words(study.runs(name)[0].info)}, it reaches {reached}\,\% of the split's {count(row['images'])} images, "
        f"{signed(row['difference'])} points from without ({interval}); this is not cross-validated yet."
    )


def _magnified(info: dict) -> str:
    size, crop, macs = info["config"]["pixels"], info["config"]["crop"], number(info["model"]["macs"] / 1e6)
    return (
        rf"Magnified, the central {crop} pixels of a photograph as {size} $\times$ {size} ({macs} million operations)"
    )


def _hardy(info: dict) -> str:
    size, epochs = info["config"]["pixels"], info["config"]["train"]["epochs"]
    return (
        rf"Turned by any angle, scaled, stained and blurred a little at {size} $\times$ {size}, then halved, for "
        f"{epochs} epochs (the hardy recipe)"
    )


def _seasoned(info: dict) -> str:
    size, train = info["config"]["pixels"], info["config"]["train"]
    return (
        rf"Magnified, and going on for {train['epochs']} epochs at {size} $\times$ {size} with the hardy recipe's "
        "changes, a little of another light and JPEG files (the seasoned recipe)"
    )


def _travelled(info: dict) -> str:
    train = info["config"]["train"]
    return (
        f"Seasoned, and going on for {train['epochs']} epochs with {train['copies']} more pictures of each image, as "
        "they come back from simulated sites, read and undone (the travelled recipe)"
    )


# Recipes that go on from the best one.
CHANGED = {"magnified": _magnified, "hardy": _hardy, "seasoned": _seasoned, "travelled": _travelled}


def tried(study: Study, groups: Collection[str] = BEYOND) -> str:
    """What the rows that the reference's study does not have do to accuracy; of one seed, that they are no result."""
    rows = [row for name in EXTRA if (row := study.row(name)) and row["group"] in CHANGES & set(groups)]
    found = [row for row in rows if row["common_seeds"]]
    told, screens = [], []
    for base in dict.fromkeys(BASES.get(group, "main") for group in groups):
        here = start(study, base)
        rows = [row for row in found if BASES.get(row["group"], "main") == base]
        judged = [row for row in rows if row["common_seeds"] >= JUDGED]
        screened = [row for row in rows if row["common_seeds"] < JUDGED]
        if judged:
            own = " beyond the reference's own" if base == "main" else ""
            first = f"Of {plural(len(judged), 'change')} to {here}{own}"
            told.append(moved(first, judged))
        if screened:
            screens.append(_screened(here, sorted(screened, key=lambda row: row["difference"])))
    if screens:
        told.append(f"With one seed, which screens and proves nothing, {'; '.join(screens)}.")
    if told:
        return " ".join(told)
    bases = dict.fromkeys(start(study, BASES.get(group, "main")) for group in groups)
    return f"No change to {', '.join(bases)} beyond the reference's own is measured yet."


def start(study: Study, base: str) -> str:
    """What a group of changes starts from; what is short says how short."""
    if base == "best_short" and (runs := study.runs(base)):
        return f"{RECIPES['best']} cut to {runs[0].info['config']['train']['epochs']} epochs"
    return RECIPES.get(base) or in_sentence(title_of(base))


def _screened(what: str, rows: Sequence[dict]) -> str:
    """Rows of one seed, from the lowest difference to the highest."""
    ends = [f"{signed(row['difference'])} ({escape(in_sentence(row['title']))})" for row in (rows[0], rows[-1])]
    if len(rows) == 1:
        return f"1 change to {what} lies at {ends[0]} points"
    return f"{len(rows)} changes to {what} lie from {' to '.join(ends)} points"


def sharpness(study: Study) -> str:
    """What it does to turn pictures before they are shrunk, and not after; "" before both can be compared."""
    after, before = (study.row(name) for name in ("short_free_rotation", "short_halved_rotation"))
    if not (after.get("common_seeds") and before.get("common_seeds")):
        return ""
    what = start(study, "best_short")
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


def undone(study: Study) -> str:
    """What reading from each photograph how it was taken gains the best recipe, and the last one that goes on from it
    of which that is analysed; "" before that is analysed of the best one."""
    if "reading_best" not in study.analyses:
        return ""
    result = study.analyses["reading_best"]["result"]
    plain, undone = (result["experiments"][kind] for kind in ("plain", "undone"))
    before, after = (answers.kept(result, kind) for kind in ("plain", "undone"))
    both = [number(100 * kind["sites"]["all"]["accuracy"], 1) for kind in (plain, undone)]
    goal, alone = number(100 * result["goals"]["alone"]), len(result["sites"]) - 1
    points = signed(undone["difference"]["points"])
    told = (
        "A second network, which taught itself to read how a photograph was taken, so that this can be undone, "
        "takes the simulated sites (another magnification, field, light, stain, blur or JPEG) where the best recipe "
        rf"keeps {goal} in a hundred of its accuracy from {before} to {after} of {alone}, and its accuracy where all "
        rf"is changed from {both[0]} to {both[1]}\,\%; unchanged pictures: {points} points "
        f"({plural(undone['seeds'], 'seed')})."
    )
    if last := [name for name in CHANGED if f"reading_{name}" in study.analyses][-1:]:
        result = study.analyses[f"reading_{last[0]}"]["result"]
        ours = result["experiments"]["undone"]
        changed, clean = (number(100 * row["accuracy"], 1) for row in (ours["sites"]["all"], ours["clean"]))
        told += (
            rf" With it, {RECIPES[last[0]]} keeps as much at {answers.kept(result, 'undone')}, and {changed}\,\% where "
            rf"all is changed; {clean}\,\% of unchanged pictures are named rightly."
        )
    return told
