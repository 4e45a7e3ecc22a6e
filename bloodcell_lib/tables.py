"""The report's tables, each from records, with a dash where nothing is recorded; cells are LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bloodcell_lib import analysis, answers, evaluate
from bloodcell_lib.beyond import CHANGES, snapshots, spoken
from bloodcell_lib.compare import averaged, difference, out_of_fold, share
from bloodcell_lib.latex import DASH, count, escape, number, plain, signed
from bloodcell_lib.numbers import Study, without_source
from bloodcell_lib.plans import RECIPES, STUDY, variants
from bloodcell_lib.reached import percent, together
from bloodcell_lib.records import Record
from bloodcell_lib.unknown import SCORES, means
from bloodcell_lib.verdicts import JUDGED

GROUPS = ("attention", "regularisation", "schedule", "augmentation")
SETTINGS = {
    "optimiser": "Optimiser",
    "learning_rate": "Learning rate",
    "schedule": "Schedule",
    "epochs": "Epochs",
    "batch_size": "Batch",
    "weight_decay": "Weight decay",
    "label_smoothing": "Label smoothing",
    "clip": "Gradient norm at most",
}  # of the training, and what they are called
GAIN = r"(points, 95\,\% interval)"
WORDS = {"adamw": "AdamW", "adam": "Adam", "cosine": "cosine", "constant": "constant", "step": "step"}


@dataclass(frozen=True)
class Table:
    """columns: LaTeX's. units: a second line of the head. rows: a row that is a string is put in as it is."""

    columns: str
    head: Sequence[str]
    rows: Sequence[Sequence[str] | str]
    units: Sequence[str] = ()

    def latex(self) -> str:
        """A booktabs tabular, without float and caption, which report.tex gives."""
        body = [row if isinstance(row, str) else " & ".join(row) + r" \\" for row in self.rows]
        head = [" & ".join(line) + r" \\" for line in (self.head, self.units) if line]
        top = [rf"\begin{{tabular}}{{@{{}}{self.columns}@{{}}}}", r"\toprule", *head, r"\midrule"]
        return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def tables(study: Study) -> dict[str, str]:
    """File name -> LaTeX of a tabular."""
    makers = (recipe, models, ablations, recipes, per_class, claims, trust)
    return {f"{make.__name__}.tex": make(study).latex() for make in makers}


def recipe(study: Study) -> Table:
    """The main recipe beside the baselines' budget, from the records of each."""
    main = study.main("config", "train") or {}
    baseline = next(
        (r.info["config"]["train"] for n in STUDY if STUDY[n].group == "baseline" for r in study.runs(n)), {}
    )
    rows = [(words, _setting(main, field), _setting(baseline, field)) for field, words in SETTINGS.items()]
    # Two settings side by side, to save height.
    half = (len(rows) + 1) // 2
    pairs = [(*a, *b) for a, b in zip(rows[:half], rows[half:])]
    head = ("Setting", "Main", "Baselines") * 2
    return Table("lll@{\\hspace{2.2em}}lll", head, pairs)


def _setting(train: dict, field: str) -> str:
    value = train.get(field)
    if field == "weight_decay" and train.get("optimiser") == "adam":
        value = 0.0  # plain Adam takes none
    if value is None:
        return DASH
    return WORDS.get(value, escape(value)) if isinstance(value, str) else "none" if value == 0 else plain(value)


def models(study: Study) -> Table:
    """The networks under both budgets: accuracy, and the distance to the main model under the same recipe."""
    rows = []
    for name in ("main", "as_described", "efficientnet_lite", "resnet18", "simple_cnn"):
        own = study.row(name)
        baseline = name not in ("main", "as_described")
        full = study.row(f"{name}_full") if baseline else own
        size = own or full
        title = {"main": "DeepEfficientNet", "as_described": "\\quad blocks as described"}.get(name)
        rows.append(
            (
                title or STUDY[name].title,
                number(size["parameters"] / 1e6, 2) if size else DASH,
                number(size["macs"] / 1e6, 0) if size else DASH,
                _accuracy(own) if baseline else "",
                _accuracy(full),
                "" if name == "main" else _difference(full),
                _seeds(own, full) if baseline else _seeds(full),
            )
        )
    head = ("Network", "Params", "MACs", "Reference's", "Main recipe", "Difference to main", "Seeds")
    units = ("", "(M)", "(M)", r"budget (\%)", r"(\%)", GAIN, "")
    return Table("lrrrrrr", head, rows, units)


def ablations(study: Study) -> Table:
    """Each change of the main recipe: accuracy, and the corrected exact test against the main model; the accuracy under
    `full`, where that is recorded beside it."""

    def at_full(name: str) -> list[str]:
        row = study.large.row(name)
        return [number(100 * row["mean"], 2) if row else DASH] if study.full else []

    rows: list[Sequence[str] | str] = [("Main recipe", _accuracy(study.row("main")), "", *at_full("main"))]
    for group in GROUPS:
        rows.append(r"\addlinespace[2pt]")
        for name, row in STUDY.items():
            if row.group == group:
                p = study.row(name).get("p_holm")
                shown = "$<$0.001" if p is not None and p < 0.001 else number(p, 3)
                rows.append((row.title, _accuracy(study.row(name)), shown, *at_full(name)))
    width = len(rows[0])
    return Table("lrrr"[:width], ("Experiment", r"Accuracy (\%)", "$p$", r"\texttt{full}")[:width], rows)


def recipes(study: Study) -> Table:
    """Recipes of ours beside the main one, and averaged: what they cost and reach, out of fold and at simulated sites
    where what the reader reads of a photograph is undone."""
    best, rows = study.folds("best")[1:], []
    for name in (name for name in RECIPES if name != "best_short"):
        folds, row = study.folds(name), study.row(name)
        if not row:
            continue
        judged = out_of_fold(folds)
        rows.append(
            (
                spoken(name).capitalize(),
                _epochs(study, name),
                number(row["macs"] / 1e6),
                _accuracy(row),
                DASH if judged.empty else _share(*share(judged), digits=2),
                "" if name == "best" else _gain(folds[1:], best),
                *_undone(study, name),
            )
        )
    found = together(study)
    if len(found) > 1:
        reached = share(averaged([study.folds(name) for name in found]))
        rows.append((f"{len(found)} averaged", "", "", "", _share(*reached, digits=2), "", "", ""))
    stages = snapshots(study)
    for turned, what in ((stages, "stages"), (stages.get("seeds"), "networks")):
        if turned:
            rows.append((f"{turned['networks']} {what} turned", "", "", "", _right(turned, 2), "", "", ""))
    head = ("Recipe", "Epochs", "MACs", "Split", "Out of fold", "Over best", "Sites", "All")
    units = ("", "", "(M)", r"(\%)", r"(\%)", "(points)", "kept", r"(\%)")
    return Table("lrrrrrrr", head, rows, units)


def changes(study: Study, base: str) -> Table:
    """What changes `base` beyond the reference's study: on the split, and at simulated sites where it was shown any.
    Bold: a difference by the rule of `verdicts`."""
    rows = []
    for name in (base, *variants(base, *CHANGES)):
        if row := study.row(name):
            gain = _judged(row) if name != base else ""
            seen = (row["title"], _epochs(study, name), _accuracy(row), gain, count(row["seeds"]))
            rows.append((*seen, *_undone(study, name)))
    head = ("Recipe", "Epochs", "Split", "Difference", "Seeds", "Sites", "All")
    units = ("", "", r"(\%)", GAIN, "", "kept", r"(\%)")
    width = len(head) if any(row[-2:] != (DASH, DASH) for row in rows[1:]) else len(head) - 2
    return Table("lrrrrrr"[:width], head[:width], [row[:width] for row in rows], units[:width])


def grid(study: Study) -> Table:
    """The reference's study: accuracy in the final epoch and what it is less than the main recipe's; under `full` too,
    where that is recorded beside it. Bold as in `changes`."""
    sides = [study, study.large] if study.full else [study]
    rows = []
    for name, row in STUDY.items():
        found = [side.row(name) for side in sides]
        if any(found):
            cells = [
                (_accuracy(one), _judged(one) if one and name != "main" else "", count(one["seeds"]) if one else "")
                for one in found
            ]
            rows.append((row.title, *(cell for side in cells for cell in side)))
    head = [name for side in sides for name in (rf"\texttt{{{side.profile}}}", "Difference", "Seeds")]
    return Table("l" + "r" * len(head), ("Experiment", *head), rows, ("", *(r"(\%)", "(points)", "") * len(sides)))


def _gain(ours: Sequence[Sequence[Record]], theirs: Sequence[Sequence[Record]]) -> str:
    """By how much one recipe is ahead of another on the same folds."""
    ahead = difference(out_of_fold(ours), out_of_fold(theirs))
    return _difference({"difference": ahead.mean, "low": ahead.low, "high": ahead.high})


def _epochs(study: Study, name: str) -> str:
    """Such as 30+7 x 3: of a recipe gone on from, then its own, with three pictures of an image."""
    return "+".join(rf"{epochs}$\times${shown}" if shown > 1 else str(epochs) for epochs, shown in study.stages(name))


def _undone(study: Study, name: str) -> tuple[str, str]:
    """At how many sites of one change each a recipe keeps the goal, and the accuracy where all is changed."""
    found = analysis.of_experiment(study.analyses, name).get("reading")
    if found is None:
        return DASH, DASH
    result = found["result"]
    every = result["experiments"]["undone"]["sites"]["all"]["accuracy"]
    return f"{answers.kept(result, 'undone')} of {len(result['sites']) - 1}", number(100 * every, 1)


def per_class(study: Study, name: str = "main") -> Table:
    """Precision, recall and F1 of the main model, or of another, by class, all seeds pooled."""
    head, pooled = ("Class", "Precision", "Recall", "F1"), study.pooled_of(name)
    if pooled is None:
        return Table("lrrr", head, [(DASH,) * 4])
    scores = evaluate.per_class(pooled.labels, pooled.predicted)
    keys = ("precision", "recall", "f1")
    rows: list[Sequence[str] | str] = [
        (str(title), *(number(row[key], 3) for key in keys)) for title, row in scores.iterrows()
    ]
    rows += [r"\midrule", ("Mean", *(number(scores[key].mean(), 3) for key in keys))]
    return Table("lrrr", head, rows)


def claims(study: Study) -> Table:
    """The reference's claims, what its other files say, what is measured, and the verdict by the stated rule.

    Claims without a measurement share the last row.
    """
    rows: list[Sequence[str] | str] = []
    untested = []
    for key, row in study.claims.iterrows():
        claim, elsewhere = (_shorter(text) for text in (row["claim"], without_source(row["elsewhere"])))
        if not row["measured"]:
            untested.append(f"{claim} ({row['stated']}; {elsewhere})")
            continue
        digits = 3 if key == "main_f1" else 1
        measured = escape(row["measured"].partition(" (")[0].removesuffix(" %"))
        if row["low"] < row["high"]:
            sign = signed if row["unit"] == "points" else number
            measured += f" [{sign(row['low'], digits)}, {sign(row['high'], digits)}]"
        if row["profile"] not in ("", study.profile):
            measured += rf", \texttt{{{escape(row['profile'])}}}"
        rows.append((escape(claim), escape(row["stated"]), escape(elsewhere), measured, row["verdict"]))
    if untested:
        rows += [r"\midrule", rf"\multicolumn{{5}}{{@{{}}p{{\linewidth}}@{{}}}}{{{escape('; '.join(untested))}.}} \\"]
    # The third column breaks its lines: one claim there is a sentence.
    columns = r"ll>{\raggedright\arraybackslash}p{2.7cm}ll"
    return Table(columns, ("Claim", "Stated", "Its other files", "Measured [interval]", "Verdict"), rows)


def trust(study: Study, experiments: Sequence[str] = ("main",)) -> Table:
    """What the analyses of trained networks found: a question, its measure, the values of each experiment."""
    columns = [_answers(analysis.of_experiment(study.analyses, name)) for name in experiments]
    rows, last = [], ""
    for key in dict.fromkeys(key for column in columns for key in column):
        question, measure = key
        rows.append((question if question != last else "", measure, *(column.get(key, DASH) for column in columns)))
        last = question
    heads = [rf"{spoken(name).capitalize()} (\%)" for name in experiments]
    return Table("ll" + "r" * len(heads), ("Question", "Measure", *heads), rows or [(DASH,) * (2 + len(heads))])


def _answers(found: dict) -> dict[tuple[str, str], str]:
    """(question, measure) -> value, for the analyses of one experiment."""
    makers = {
        "trust": _probabilities,
        "shortcuts": _paint,
        "explain": _heat,
        "robustness": _corruptions,
        "travel": _sites,
        "reading": _mended,
        "unknown": _unknown,
        "labels": _labels,
    }
    rows = [row for name, make in makers.items() if name in found for row in make(found[name]["result"])]
    return {(question, measure): value for question, measure, value in rows}


def _probabilities(result: dict) -> list[Sequence[str]]:
    plain = result["plain"]
    after, kept, sets = plain["after"], plain["abstention"]["0.995"], plain["sets"]["0.95"]
    gain = result["tta"]["before"]["accuracy"] - plain["before"]["accuracy"]
    return [
        ("Probabilities", "calibration error as trained", number(100 * plain["before"]["ece_mass"], 1)),
        ("Probabilities", "after temperature scaling", _share(after["ece_mass"], *after["ece_mass_interval"])),
        ("Abstention", r"cells kept for 99.5\,\%", number(100 * kept["coverage"], 1)),
        ("Abstention", "right among them", _right(kept)),
        ("Sets", r"with the class, 95\,\% asked", _share(sets["coverage"], sets["low"], sets["high"])),
        ("Symmetries", "points gained by all 8", signed(100 * gain)),
    ]


def _paint(result: dict) -> list[Sequence[str]]:
    keys = ("cell_alone", "background_alone")
    return [("Painted over", key.replace("_", " "), _right(result["conditions"][key])) for key in keys]


def _heat(result: dict) -> list[Sequence[str]]:
    more = result["location"].get("inside_less_other")
    if more is None:  # no map shows any heat
        return []
    return [("Grad-CAM", "heat in cell, less another's", _share(more["mean"], more["low"], more["high"]))]


def _corruptions(result: dict) -> list[Sequence[str]]:
    mean = result["experiments"][result["experiment"]]["mean"]
    words = f"accuracy under {len(result['corruptions'])} kinds"
    return [("Corruptions", words, _right(mean))]


def _sites(result: dict) -> list[Sequence[str]]:
    own = result["experiments"][result["experiment"]]
    return [("Other sites", "accuracy, all changes", _right(own["sites"]["all"]))]


def _mended(result: dict) -> list[Sequence[str]]:
    return [("Other sites", "the same, read and undone", _right(result["experiments"]["undone"]["sites"]["all"]))]


def _unknown(result: dict) -> list[Sequence[str]]:
    rows = []
    for kind, words in (("left_out", "Class left out"), ("main", "No cell")):
        if result[kind]:
            areas = means(result[kind], "auroc")
            best = max(areas, key=lambda score: areas[score])
            rows.append((words, f"AUROC, {SCORES[best]}", number(100 * areas[best], 1)))
    return rows


def _labels(result: dict) -> list[Sequence[str]]:
    wrong = result["wrong"]
    return [("Labels", "wrong, by estimate", _share(wrong["share"], wrong["low"], wrong["high"]))]


def _right(row: dict, digits: int = 1) -> str:
    """The accuracy in a row, with its interval."""
    return _share(row["accuracy"], row["low"], row["high"], digits)


def _share(value: float | None, low: float | None, high: float | None, digits: int = 1) -> str:
    """Fractions, of which there may be none, in per cent."""
    if value is None or low is None or high is None:
        return DASH
    value, low, high = (number(100 * x, digits) for x in (value, low, high))
    return f"{value} [{low}, {high}]"


SHORTER = {
    "validation, best epoch": "accuracy",
    "hidden test set": "test set",
    "Squeeze-and-excitation, r": "SE, r",
    " in the final": ", final",
    "over a constant rate": "over constant",
    "images/s, about": "images/s,",
    ", of a model of": ", with",
    "M parameters": "M",
}


def _shorter(text: str) -> str:
    """A claim's words as the narrow table wants them."""
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


def _accuracy(row: dict) -> str:
    return percent(row) if row else DASH


def _difference(row: dict) -> str:
    if not row or np.isnan(row["difference"]):
        return DASH
    return f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]"


def _judged(row: dict) -> str:
    differs = row["common_seeds"] >= JUDGED and (row["low"] > 0 or row["high"] < 0)
    return rf"\textbf{{{_difference(row)}}}" if differs else _difference(row)


def _seeds(*rows: dict) -> str:
    found = [count(row["seeds"]) if row else "0" for row in rows]
    return found[0] if len(set(found)) == 1 else ", ".join(found)
