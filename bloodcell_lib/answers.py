"""What the analyses found, a sentence or two each, in plain text; every number in them is computed.

The notebooks show them under their figures; the README and the report print some. `answer(question, found)` takes the
analyses by name, as `analysis.load_analyses` gives them, and says of one that is absent how to make it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from bloodcell_lib import robustness
from bloodcell_lib.cells import CLASS_MAP, NAMES, TITLES
from bloodcell_lib.compare import in_sentence, title_of
from bloodcell_lib.plans import EXPERIMENTS, WITHOUT
from bloodcell_lib.travel import titles
from bloodcell_lib.unknown import SCORES, means

Analysis = dict[str, Any]
SAID = {"max_softmax": "largest softmax", "energy": "energy", "mahalanobis": "Mahalanobis distance"}  # as in SCORES
NAMED, WORST = 3, 4  # rivals and sites that a sentence names, at most


def answer(question: str, found: dict[str, Analysis]) -> str:
    """The answer to one of QUESTIONS."""
    name, tell = QUESTIONS[question]
    if name not in found:
        return f"Not recorded yet: run `bloodcell trust --only {name}`."
    return re.sub(r"(?<![\w.])-(?=\d)", "−", tell(found[name]["result"]))


def calibration(result: Analysis) -> str:
    """Calibration error before and after temperature scaling."""
    before, after = (result["plain"][key] for key in ("before", "after"))
    low, high = after["ece_mass_interval"]
    temperature = np.mean(result["plain"]["temperatures"])
    return (
        f"The calibration error is {100 * before['ece_mass']:.1f} points as trained and {100 * after['ece_mass']:.1f} "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f}) at a temperature of {temperature:.2f}, fitted on other "
        f"images (15 bins of equal mass; of equal width {100 * before['ece_width']:.1f} and "
        f"{100 * after['ece_width']:.1f}). The Brier score goes from {before['brier']:.3f} to {after['brier']:.3f}, "
        f"the negative log-likelihood from {before['nll']:.3f} to {after['nll']:.3f}."
    )


def abstention(result: Analysis) -> str:
    """How many cells must go to a human for an accuracy on the rest."""
    return " ".join(_kept(float(wanted), row) for wanted, row in result["plain"]["abstention"].items())


def _kept(wanted: float, row: Analysis) -> str:
    if not row["kept"]:
        return f"For {100 * wanted:g} % on the rest, no threshold is high enough: all cells go to a human."
    return (
        f"For {100 * wanted:g} % on the rest, {100 * (1 - row['coverage']):.1f} % of the cells go to a human; of those "
        f"kept, {100 * row['accuracy']:.1f} % are right ({_interval(row)})."
    )


def sets(result: Analysis) -> str:
    """Coverage and size of prediction sets."""
    told = [
        f"Asked for {100 * float(level):g} %, the sets hold the true class for {100 * row['coverage']:.1f} % of the "
        f"cells ({_interval(row)}; worst class {100 * row['worst_class']:.1f} %), with {row['size']:.2f} classes on "
        f"average{_none(row['empty'])}."
        for level, row in result["plain"]["sets"].items()
    ]
    return " ".join(told)


def _none(empty: float) -> str:
    return f" and none for {100 * empty:.1f} % of the cells" if empty else ""


def averaging(result: Analysis) -> str:
    """What the eight symmetries, and several seeds, give."""
    both = result["averaging"]
    plain, tta = (100 * np.mean(both[key]["single"]) for key in ("plain", "tta"))
    told = f"On {both['images']} validation images, one network alone is right on {plain:.1f} %, "
    told += f"averaged over the eight symmetries on {tta:.1f} %"
    if both["seeds"] > 1:
        row = both["tta"]["ensemble"]
        told += f", and {both['seeds']} seeds averaged as well on {100 * row['accuracy']:.1f} % ({_interval(row)})"
    if result["images"] == both["images"]:
        return f"{told}."
    alone, turned = (100 * result[key]["before"]["accuracy"] for key in ("plain", "tta"))
    told += f". Of all {result['images']:,}, by networks that had not seen them: {alone:.2f} % and {turned:.2f} %"
    if row := result["tta"].get("with_earlier"):
        told += (
            f", and averaged with those that each went on from, {row['networks']} in all, {100 * row['accuracy']:.2f} "
            f"% ({100 * row['low']:.2f} to {100 * row['high']:.2f} %)"
        )
        if more := row.get("seeds"):
            told += (
                f"; those of {len(more['each'])} seeds, {more['networks']} in all, {100 * more['accuracy']:.2f} % "
                f"({100 * more['low']:.2f} to {100 * more['high']:.2f} %)"
            )
    return f"{told}."


def painting(result: Analysis) -> str:
    """Accuracy on the cell alone, on the background alone, on another's background, which mistakes may follow."""
    alone, without = (result["conditions"][key] for key in ("cell_alone", "background_alone"))
    less, followed = (result[key] for key in ("other_less_same", "background_followed"))
    told = (
        f"With the cell alone {100 * alone['accuracy']:.1f} % are right ({_interval(alone)}), with the background "
        f"alone {100 * without['accuracy']:.1f} % ({_interval(without)}; chance {100 / len(TITLES):g} %). Another "
        f"class's background, against one of the same class, changes accuracy by {_signed(less['points'], 1)} points "
        f"({_span(less['low'], less['high'], 1)})"
    )
    if followed["wrong"]:
        told += (
            f"; {100 * followed['share']:.0f} % of the mistakes there name the background's class "
            f"({_interval(followed)}; one in {len(TITLES) - 1} by chance)"
        )
    return f"{told}."


def heat(result: Analysis) -> str:
    """How much of Grad-CAM's heat lies in the cell."""
    where = result["location"]
    if where["cold"] == where["images"]:
        return "No map shows any heat."
    gain = where["inside_less_other"]
    inside, area, hit, centre = (f"{100 * where[key]['mean']:.0f} %" for key in ("inside", "area", "hit", "centre_hit"))
    nucleus = ""
    if "nucleus" in where:  # some cell has one
        within, share = (f"{100 * where[key]['mean']:.0f} %" for key in ("nucleus", "nucleus_area"))
        nucleus = f" Of the heat in the cell, {within} lies in its nucleus, which fills {share} of it."
    return (
        f"{inside} of the heat lies in the cell, which fills {area} of the picture: "
        f"{_signed(100 * gain['mean'], 1)} points ({_span(100 * gain['low'], 100 * gain['high'], 1)}) more than in "
        f"another image's cell.{nucleus} The hottest pixel lies in the cell in {hit} of the pictures, the middle of "
        f"the picture in {centre}."
    )


def sanity(result: Analysis) -> str:
    """Whether the heat maps pass deletion and randomisation."""
    centre = result["curves"]["deletion"]["centre"]["grad_cam_less"]
    verdict = "better" if centre["high"] < 0 else "worse" if centre["low"] > 0 else "no better and no worse"
    head, two = (result["randomisation"][key]["mean"] for key in ("head", "between_images"))
    return (
        f"By deletion, Grad-CAM is {verdict} than taking pixels away from the middle outwards (area under the curve "
        f"{_signed(centre['mean'], 3)}, {_span(centre['low'], centre['high'], 3)}). With the last layer shuffled, maps "
        f"keep a rank correlation of {head:.2f}, where two images' maps have {two:.2f}: they "
        f"{'do' if head < two else 'do not'} depend on what was learnt there."
    )


def corruptions(result: Analysis) -> str:
    """What is left on corrupted pictures, and under which least."""
    own = result["experiments"][result["experiment"]]
    left = {name: np.mean([step["accuracy"] for step in steps]) for name, steps in own["corrupted"].items()}
    worst = sorted(left, key=lambda name: left[name])[:3]
    named = ", ".join(f"{result['corruptions'][name]['title'].lower()} ({100 * left[name]:.0f} %)" for name in worst)
    told = (
        f"Accuracy falls from {100 * own['clean']['accuracy']:.1f} to {100 * own['mean']['accuracy']:.1f} % on average "
        f"over corruptions and severities ({_interval(own['mean'])}); lowest under {named}."
    )
    if own["mce"] is not None:
        baseline = in_sentence(title_of(result["baseline"]))
        told += (
            " The mean corruption error (the errors under a corruption, as a share of the baseline's, averaged over "
            f"corruptions) is {100 * own['mce']:.0f} % of that of {baseline}."
        )
    # What an older analysis compared besides may be another recipe today.
    beside = robustness.rivals(result["experiment"])
    for name, rival in result["experiments"].items():
        if name in beside:
            change = rival["difference"]
            interval = _span(change["low"], change["high"], 1)
            told += f" {title_of(name)}: {_signed(change['points'], 1)} points on average ({interval})."
    return told


def travel(result: Analysis) -> str:
    """What is left at other sites, simulated, and whether that is enough."""
    told = sites(result, result["experiment"])
    rivals = {name: row for name, row in result["experiments"].items() if name != result["experiment"]}
    if not rivals:
        return told
    order = sorted(rivals, key=lambda name: -rivals[name]["sites"]["all"]["accuracy"])
    named = [_rival(name, rivals[name]) for name in order[:NAMED]]
    worst = _poor(result, result["experiment"])[:WORST]
    if better := [words for site in worst if (words := _better(result, site))]:
        told += f" Higher there: {', '.join(better)}."
    rows = result["experiments"].values()
    enough = sum(row["sites"]["all"]["share"] >= result["goals"]["together"] for row in rows)
    first = f"Best of {len(rivals)} beside it" if len(rivals) > NAMED else "Beside it"
    return (
        f"{told} {first}: {'; '.join(named)}. With all changes together, {enough or 'none'} of the {len(rows)} "
        f"recipes keep{'s' * (enough < 2)} {100 * result['goals']['together']:g} in a hundred of its accuracy."
    )


def _rival(name: str, row: Analysis) -> str:
    together, change = row["sites"]["all"], row["difference"]
    return (
        f"{in_sentence(title_of(name))} {100 * together['accuracy']:.1f} % ({_interval(together)}; unchanged pictures "
        f"{_signed(change['points'], 1)} points, {_span(change['low'], change['high'], 1)}; "
        f"{_seeds(row)})"
    )


def _better(result: Analysis, site: str) -> str:
    """Who names most rightly at a site; "" if that is the experiment itself."""
    reached = {name: 100 * row["sites"][site]["accuracy"] for name, row in result["experiments"].items()}
    best, own = max(reached, key=lambda name: reached[name]), reached[result["experiment"]]
    if reached[best] == own:
        return ""
    shares = f"{reached[best]:.1f} against {own:.1f} %"
    return f"{in_sentence(titles(result)[site])}, {in_sentence(title_of(best))} ({shares})"


def kept(result: Analysis, experiment: str) -> int:
    """At how many sites of one change each an experiment keeps the goal."""
    return len(result["sites"]) - 1 - len(_poor(result, experiment))


def _poor(result: Analysis, experiment: str) -> list[str]:
    """The sites of one change each at which an experiment keeps less than the goal, the worst first."""
    own = result["experiments"][experiment]["sites"]
    poor = [key for key in own if key != "all" and own[key]["share"] < result["goals"]["alone"]]
    return sorted(poor, key=lambda key: own[key]["share"])


def sites(result: Analysis, experiment: str, how: str = "read as whole photographs") -> str:
    """What one of the experiments keeps at other sites."""
    own, words, goals = result["experiments"][experiment], titles(result), result["goals"]
    poor, alone, both = _poor(result, experiment), len(own["sites"]) - 1, own["sites"]["all"]
    named = ", ".join(
        f"{in_sentence(words[key])} ({100 * own['sites'][key]['accuracy']:.1f} %)" for key in poor[:WORST]
    )
    return (
        f"Of its {100 * own['clean']['accuracy']:.1f} % on {result['images']} images, {how}, it "
        f"keeps at least {100 * goals['alone']:g} in a hundred at {kept(result, experiment)} of {alone} simulated "
        f"sites{f'; lowest: {named}' if poor else ''}. With all changes together {100 * both['accuracy']:.1f} % are "
        f"right ({_interval(both)})."
    )


def reader(result: Analysis) -> str:
    """How well it is read from a photograph how it was taken."""
    off = {name: 100 * row["median"] for name, row in result["exact"].items()}
    light = max(off[name] for name in ("red", "green", "blue"))
    return (
        f"A network of {result['learnt']['parameters'] / 1e6:.2f} million parameters, which taught itself on the "
        f"training photographs, reads how a photograph was taken: half of its readings are off by at most "
        f"{off['zoom']:.0f} % in magnification, {light:.0f} % in the light of any colour, {off['haematoxylin']:.0f} % "
        f"in the blue dye and {off['eosin']:.0f} % in eosin. All that, and a blur, can then be undone. It learnt from "
        "such changes as the simulated sites make; a real one may differ in other ways."
    )


def plain_and_undone(result: Analysis) -> tuple[Analysis, Analysis]:
    """What `reading` found without and with it: out of fold where that is recorded, else on the split."""
    found = (result.get("folds") or result)["experiments"]
    return found["plain"], found["undone"]


def reading(result: Analysis) -> str:
    """What is gained by undoing what is read of how a photograph was taken."""
    folds, (plain, undone) = result.get("folds"), plain_and_undone(result)
    goal, both, untouched = result["goals"]["together"], undone["sites"]["all"], plain["sites"]["all"]["accuracy"]
    everywhere = ""
    if folds:
        everywhere = (
            f" Of all {folds['images']:,} images, each read and named by networks that had not seen it, "
            f"{100 * both['accuracy']:.1f} % ({_interval(both)}) and, unchanged, "
            f"{100 * undone['clean']['accuracy']:.2f} %."
        )
    change = undone["difference"]
    span = _span(change["low"], change["high"], 2)
    return (
        f"{sites(result, 'undone', 'each put through the reader too')}{everywhere} That is {100 * both['share']:.1f} % "
        f"of its accuracy on unchanged ones; the goal is {100 * goal:g}. With nothing undone, "
        f"as much is kept at {kept(result, 'plain')} of the sites (here all changes are to the whole photograph), and "
        f"with all together{', out of fold,' * bool(folds)} {100 * untouched:.1f} % are right. Unchanged pictures"
        f"{', out of fold' * bool(folds)}: {_signed(change['points'], 2)} points ({span}; {_seeds(undone)})."
    )


def unknown(result: Analysis) -> str:
    """How well the unknown is told from the known, by each score on average."""
    told = []
    for kind, words in (("left_out", "a class that was left out of training"), ("main", "pictures of no cell")):
        if result[kind]:
            auroc, rates = (means(result[kind], measure) for measure in ("auroc", "fpr95"))
            scores = ", ".join(f"{auroc[s]:.3f} by the {SAID[s]}" for s in SCORES)
            best = max(auroc, key=lambda s: auroc[s])
            told.append(
                f"For {words} the mean AUROC{'' if told else ' (a coin has 0.5)'} is {scores}; with the {SAID[best]}, "
                f"{100 * rates[best]:.0f} % of the unknown pass where {100 * result['tpr']:g} % of the known do."
            )
    if result["left_out"]:
        known = sorted(100 * row["accuracy"]["accuracy"] for row in result["left_out"].values())
        told.append(
            f"Networks that a class was kept from trained for {EXPERIMENTS[WITHOUT + NAMES[0]].epochs} epochs at most; "
            f"of the other classes they name {known[0]:.1f} to {known[-1]:.1f} % rightly."
        )
        shares = [
            (share, f"{100 * share:.0f} % of {_many(name)} are called {_many(said)}")
            for name, row in result["left_out"].items()
            for said, share in row["taken_for"].items()
        ]
        most = [told for _, told in sorted(shares, key=lambda row: -row[0])[:2]]
        told.append(f"By a network that was kept from them, {' and '.join(most)}.")
    if result["missing"]:
        absent = [TITLES[CLASS_MAP[name]].lower() for name in result["missing"]]
        told.append(f"Without a network that was kept from it: {', '.join(absent)}.")
    return " ".join(told)


def _many(name: str) -> str:
    """A class as a sentence speaks of its cells."""
    return f"{TITLES[CLASS_MAP[name]].lower()}s"


def labels(result: Analysis) -> str:
    """How many labels are suspected, and what training without them gives."""
    wrong, clean = result["wrong"], result["cleaned"]
    told = (
        f"{result['suspected']} of {result['images']:,} labels are suspected. The estimated share of wrong ones, "
        f"{100 * wrong['share']:.1f} % ({_interval(wrong)}), holds the networks' own surest mistakes too."
    )
    if clean:
        change = clean["difference"]
        told += (
            " Training without the suspects changes accuracy on untouched folds by "
            f"{_signed(change['mean'], 2)} points ({_span(change['low'], change['high'], 2)}; {_seeds(change)} a fold)."
        )
    return told


def finer(result: Analysis) -> str:
    """Which finer type is hardest, and whether teaching the finer types helps."""
    rows = [row for row in result["finer"] if row["finer"]]
    told = []
    if rows:
        worst = min(rows, key=lambda row: row["recall"])
        told.append(
            f"Hardest is the {worst['finer']}: {100 * worst['recall']:.1f} % of {worst['images']} ({_interval(worst)})."
        )
    if "finer_labels" not in result:  # of a recipe that no finer labels were tried with
        return " ".join(told)
    if taught := result["finer_labels"]:
        row = taught[0]
        told.append(
            f"A network that is taught the finer types, its probabilities added up, changes accuracy by "
            f"{_signed(row['mean'], 2)} points ({_span(row['low'], row['high'], 2)}; {_seeds(row)})."
        )
    else:
        told.append("No network that was taught the finer types is recorded.")
    return " ".join(told)


def _seeds(row: Analysis) -> str:
    return f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"


def _signed(value: float, digits: int) -> str:
    """With its sign; what rounds to zero has none."""
    rounded = round(float(value), digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def _span(low: float, high: float, digits: int) -> str:
    return f"{_signed(low, digits)} to {_signed(high, digits)}"


def _interval(row: Analysis) -> str:
    """Of fractions."""
    return f"95 % interval {100 * row['low']:.1f} to {100 * row['high']:.1f} %"


# Name -> (the analysis that answers it, how).
QUESTIONS: dict[str, tuple[str, Callable[[Analysis], str]]] = {
    "calibration": ("trust", calibration),
    "abstention": ("trust", abstention),
    "sets": ("trust", sets),
    "averaging": ("trust", averaging),
    "painting": ("shortcuts", painting),
    "heat": ("explain", heat),
    "sanity": ("explain", sanity),
    "corruptions": ("robustness", corruptions),
    "travel": ("travel", travel),
    "reader": ("reading", reader),
    "reading": ("reading", reading),
    "unknown": ("unknown", unknown),
    "labels": ("labels", labels),
    "finer": ("mistakes", finer),
}
