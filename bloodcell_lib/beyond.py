"""Sentences of what goes beyond the reference: recipes of our own, what led to them, what they are worth elsewhere.

Each is "" or says so where what it tells is not recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from bloodcell_lib import analysis, answers
from bloodcell_lib.compare import BEYOND, in_sentence, out_of_fold, title_of
from bloodcell_lib.latex import escape, join, number, plural, signed
from bloodcell_lib.numbers import Study
from bloodcell_lib.plans import BASES, CHOSEN, EXTRA, IN_VIEW, OURS, RECIPES, variants
from bloodcell_lib.reached import foremost, headline, length, rightly, together, unseen
from bloodcell_lib.verdicts import JUDGED, moved

NETWORKS = {"deep_efficientnet": "DeepEfficientNet", "slim_resnet": "a slim ResNet-18"}
CHANGES = set(BEYOND) - {"best"}  # groups whose rows change one thing, or a few that go together


def best(study: Study) -> str:
    """What the best recipe is, and what it reaches on the folds that had no say in it."""
    if not study.runs("best"):
        return headline(study, "best")
    return " ".join(filter(None, [recipe(study), unseen(study, "best")]))


def recipe(study: Study) -> str:
    """The best recipe in words, from its record."""
    best = study.runs("best")[0].info
    turns = " and quarter turns" if best["config"]["augment"].get("turns") else ""
    millions, epochs = number(best["model"]["parameters"] / 1e6, 2), best["config"]["train"]["epochs"]
    return (
        f"The best recipe trains {_network(best)} of {millions} million parameters for {epochs} epochs, with "
        f"flips{turns} as its only augmentation, else by the main recipe."
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
    size = number(info["model"]["parameters"] / 1e6, 2)
    chosen = "all" if name in IN_VIEW else "a fifth of them"
    return (
        f"A recipe of ours, for {_network(info)} of {size} million parameters and {length(study, name)}, names "
        f"{share} of all {images} labelled images rightly, each by a network that had not seen it ({interval}); "
        f"{chosen} had a say in its choice."
    )


def spoken(name: str) -> str:
    """A recipe's name in the table of recipes."""
    return name.replace("_", " ")


def further(study: Study) -> str:
    """What the recipes after the best one change, as the table of recipes has them; "" where none is recorded."""
    found = [f"{name}, {words}" for name, words in others(study).items()]
    told = f"The others of the table: {'; '.join(found)}." if found else ""
    return " ".join(filter(None, [told, last_rows(study)]))


def others(study: Study) -> dict[str, str]:
    """The recipes after the best one, as they are spoken of, and what each changes."""
    return {spoken(name): words(runs[0].info) for name, words in CHANGED.items() if (runs := study.runs(name))}


def last_rows(study: Study) -> str:
    """What the table's last rows average; "" where there are none."""
    found, told = together(study), []
    if len(found) > 1:
        every = found == [name for name in OURS if study.runs(name)]
        who = "the probabilities of all but main" if every else join([spoken(name) for name in found])
        told.append(f"{len(found)} averaged: {who}.")
    if stages := snapshots(study):
        told.append(
            f"{stages['networks']} stages turned: {spoken(foremost(study))} and what it started from, averaged over "
            "the eight symmetries."
        )
        if more := stages.get("seeds"):
            alone = [rf"{number(100 * share, 2)}\,\%" for share in more["each"][1:]]
            told.append(
                f"{more['networks']} networks turned: these of {len(more['each'])} seeds (the other"
                f"{'' if len(alone) == 1 else 's'} alone: {join(alone)})."
            )
    return " ".join(told)


def by_seeds(counts: Mapping[str, int]) -> str:
    """Of how many seeds the numbers of these recipes are."""
    several = {name: seeds for name, seeds in counts.items() if seeds > 1}
    if not several:
        return "of one seed"
    told = [
        f"{n} seeds for {join([spoken(name) for name, seeds in several.items() if seeds == n])}"
        for n in dict.fromkeys(several.values())
    ]
    return f"of {join(told)}{', else of one' if len(several) < len(counts) else ''}"


def seeds_out_of_fold(study: Study, against: str = "") -> dict[str, int]:
    """Of how many seeds each of ours is told out of fold, or those that it shares with another recipe there."""
    given = {name: set(out_of_fold(study.folds(name)).columns) for name in together(study)}
    return {name: len(seeds & given.get(against, seeds)) for name, seeds in given.items() if name != against}


def snapshots(study: Study) -> dict:
    """What our foremost recipe's networks reach with those that they went on from, over the symmetries; {} before."""
    found = analysis.of_experiment(study.analyses, foremost(study) or "").get("trust")
    return (found and found["result"]["tta"].get("with_earlier")) or {}


def in_view(study: Study) -> str:
    """Which recipes were made when those before them had been compared on all folds; "" where none is recorded."""
    found = [spoken(name) for name in IN_VIEW if study.runs(name)]
    return f", which were in view when {join(found)} {'was' if len(found) == 1 else 'were'} made" if found else ""


def _magnified(info: dict) -> str:
    size, crop = info["config"]["pixels"], info["config"]["crop"]
    return rf"the central {crop} pixels as {size} $\times$ {size}"


def _hardy(info: dict) -> str:
    size = info["config"]["pixels"]
    return rf"turned by any angle, scaled, stained and blurred a little at {size} $\times$ {size}, then halved"


def _seasoned(info: dict) -> str:
    size = info["config"]["pixels"]
    return rf"fine-tuned from magnified at {size} $\times$ {size} with such changes, other light and JPEG files"


def _travelled(info: dict) -> str:
    train = info["config"]["train"]
    return (
        f"fine-tuned from {train['after']} with {train['copies']} more versions of each image, as from a simulated "
        "other site, corrected by the reader, a network that estimates how a photograph was taken"
    )


def _patient(info: dict) -> str:
    size, crop = info["config"]["pixels"], info["config"]["crop"]
    half = ", in half precision" if info["config"]["train"].get("precision") == "bfloat16" else ""
    return rf"the central {crop} pixels, turned and scaled at {size} $\times$ {size}, then halved{half}"


def _likewise(info: dict) -> str:
    return f"fine-tuned from {spoken(info['config']['train']['after'])} likewise"


def _farther(info: dict) -> str:
    train = info["config"]["train"]
    return f"fine-tuned from {spoken(train['after'])} with {train['copies']} more versions of each"


# What each recipe after the best one changes in it.
CHANGED = {
    "magnified": _magnified,
    "hardy": _hardy,
    "seasoned": _seasoned,
    "travelled": _travelled,
    "patient": _patient,
    "patient_travelled": _likewise,
    "well_travelled": _farther,
}


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
            own = {"main": " beyond the reference's own", "best": ", made in view of these images"}.get(base, "")
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


def levers(study: Study, base: str = "patient", group: str = "ablation") -> str:
    """What one of our recipes loses without each of its levers; "" before such rows are recorded."""
    rows = [row for name in variants(base, group) if (row := study.row(name)) and row["common_seeds"]]
    if not rows:
        return ""
    told = [
        f"{signed(row['difference'])} ({escape(row['title'].split(', ', 1)[-1])})"
        for row in sorted(rows, key=lambda row: row["difference"])
    ]
    seeds = int(min(row["common_seeds"] for row in rows))
    return f"With one lever less, {RECIPES[base]} changes by {join(told)} points ({plural(seeds, 'seed')})."


def sharpness(study: Study) -> str:
    """What it does to turn pictures before they are shrunk, and not after; "" before both can be compared."""
    after, before = (study.row(name) for name in ("short_free_rotation", "short_halved_rotation"))
    if not (after.get("common_seeds") and before.get("common_seeds")):
        return ""
    what = start(study, "best_short")
    return (
        f"Any rotation changes {what} by {signed(after['difference'])} points if training pictures are turned at the "
        "network's input size, which blurs them but not the validation pictures, and by "
        f"{signed(before['difference'])} if they are turned at twice that size and then shrunk."
    )


def doubts(study: Study) -> str:
    """How many labels the best recipe's networks suspect, beside the main one's; "" before both are analysed."""
    if not {"labels", "labels_best"} <= study.analyses.keys():
        return ""
    main, best = (study.analyses[name]["result"] for name in ("labels", "labels_best"))
    few = plural(best["suspected"], "label")
    told = f"The best recipe's networks suspect {few}, the main recipe's {main['suspected']}"
    if any(row["suspected"] > len(row["suspects"]) for row in (main, best)):  # not all of them are listed
        return f"{told}."
    both = len({row["name"] for row in main["suspects"]} & {row["name"] for row in best["suspects"]})
    told += f", with {both} in common"
    if 2 * both < main["suspected"]:
        told += ": most of what looks like a wrong label is a network's own mistake"
    return f"{told}."


def undone(study: Study) -> str:
    """What reading from each photograph how it was taken gains the recipe whose weights `predict` has, or the last
    of ours of which that is analysed; "" before it is."""
    read = [name for name in ("best", *CHANGED) if f"reading_{name}" in study.analyses]
    if not read:
        return ""
    name = CHOSEN if CHOSEN in read else read[-1]
    result = study.analyses[f"reading_{name}"]["result"]
    plain, undone = answers.plain_and_undone(result)
    where = ", out of fold," if result.get("folds") else ""
    before, after = (answers.kept(result, kind) for kind in ("plain", "undone"))
    both = [number(100 * kind["sites"]["all"]["accuracy"], 1) for kind in (plain, undone)]
    goal, alone = number(100 * result["goals"]["alone"]), len(result["sites"]) - 1
    points = signed(undone["difference"]["points"])
    return (
        "To undo what the reader estimates takes "
        f"the simulated sites (magnification, field, light, stain, blur, JPEG) where {RECIPES[name]} "
        rf"keeps {goal}\,\% of its accuracy from {before} to {after} of {alone}, and its accuracy where all "
        rf"is changed{where} from {both[0]} to {both[1]}\,\%; unchanged pictures: "
        f"{points} points ({plural(undone['seeds'], 'seed')})."
    )
