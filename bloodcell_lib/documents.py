"""Blocks of the README and the other documents that are made from what is published, so that nobody types a number.

A block stands between `<!-- begin name -->` and `<!-- end name -->`; whatever is there is replaced.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell_lib import (
    analysis,
    answers,
    bench,
    beyond,
    calibration,
    compare,
    evaluate,
    opinions,
    paths,
    reached,
    sentences,
    tables,
    verdicts,
)
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.latex import count, join, plural
from bloodcell_lib.numbers import Study, without_source
from bloodcell_lib.plans import BASES, PROFILES, RECIPES, STUDY, measured
from bloodcell_lib.predict import load_set
from bloodcell_lib.shelf import published_profile
from bloodcell_lib.travel import ALONE

DOCUMENTS = {
    "README.md": ("results", "claims", "asked"),
    "MODEL_CARD.md": ("network", "evaluation"),
    "report/FINDINGS.md": ("tried", "trust"),
    "report/PERFORMANCE.md": ("performance", "speed"),
}
ASKED = {
    "calibration": "Are its probabilities true?",
    "abstention": "What can be left to it?",
    "sets": "Sets in place of single answers.",
    "averaging": "More looks.",
    "painting": "The cell, or something beside it?",
    "heat": "Where does it look?",
    "sanity": "May the heat maps be believed?",
    "corruptions": "Another microscope.",
    "travel": "Another laboratory, simulated.",
    "reader": "Can it be read how a photograph was taken?",
    "reading": "Can another laboratory be undone?",
    "unknown": "What it never saw.",
    "labels": "Are the labels right?",
    "finer": "Finer types.",
}
SHORT = (
    "For two fifths of the profile's epochs, and what is tried on it. Where an augmentation practises what a simulated "
    "site changes, its gain there is no promise for a real one."
)
WEIGHTS = paths.ROOT / "bloodcell_lib" / "weights"  # those of the repository, whatever `paths.WEIGHTS` names
BUILT = {
    "deep_efficientnet": "MBConv blocks, with squeeze-and-excitation in the last two stages",
    "slim_resnet": "the four stages of ResNet-18 at about three eighths of their width, behind a stem without a pool",
}
NOTHING = "No study is published yet."
UNASKED = "No analysis is published yet: `bloodcell trust` makes them."
MARKER = re.compile(r"<!-- (begin|end) (\w+) -->")
# The LaTeX that our sentences and tables hold, and what it is in Markdown.
SIGNS = {
    r"$\pm$": "±",
    r"$\times$": "×",
    "$-$": "−",
    "$+$": "+",
    "$<$": "<",
    "$p$": "*p*",
    r"\,": " ",
    r"\quad ": "",
    "$": "",
}


def update(results: Path = paths.RESULTS, root: Path = paths.ROOT) -> list[Path]:
    """Fills the blocks of every document in `root` from the records in `results`; gives the files that changed.

    Raises BloodcellError, before anything is written, if a document is absent or its markers are not in order.
    """
    made, texts = blocks(results), {}
    for name, wanted in DOCUMENTS.items():
        path = Path(root) / name
        if not path.is_file():
            raise BloodcellError(f"There is no {path}: run from a checkout of the repository.")
        before = path.read_text(encoding="utf-8")
        after = filled(before, {block: made[block] for block in wanted}, name)
        if after != before:
            texts[path] = after
    for path, text in texts.items():
        with paths.write_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(texts)


def blocks(folder: Path) -> dict[str, str]:
    """Every block by its name, from the records and the speed tests in `folder`."""
    profile = published_profile(folder)
    study = Study.read(folder, profile)
    made = {make.__name__: make(study) for make in (results, claims, asked, tried, trust, network, evaluation)}
    timings = [bench.read(path) for path in sorted(Path(folder).glob("bench-*.json"))] or [{}]
    return made | {
        name: speed(timings, tell) for name, tell in (("performance", bench.summary), ("speed", bench.markdown))
    }


def filled(text: str, contents: dict[str, str], name: str) -> str:
    """`text` with each of `contents` between its markers. Raises BloodcellError unless each has them once, in order."""
    found = MARKER.findall(text)
    if sorted(found[::2]) != sorted(("begin", block) for block in contents) or found[1::2] != [
        ("end", block) for _, block in found[::2]
    ]:
        raise BloodcellError(
            f"The markers in {name} are not in order: give each of {', '.join(contents)} one line "
            "`<!-- begin ... -->` and below it one `<!-- end ... -->`."
        )
    for block, content in contents.items():
        begin, end = f"<!-- begin {block} -->", f"<!-- end {block} -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"
    return text


def markdown(latex: str) -> str:
    """A sentence or a table's cell of the report, which are LaTeX, as Markdown."""
    text = re.sub(r"\\texttt\{([^{}]*)\}", r"`\1`", latex)
    text = re.sub(r"\\textbf\{([^{}]*)\}", r"**\1**", text)
    for sign, letter in SIGNS.items():
        text = text.replace(sign, letter)
    text = re.sub(r"(?<!\S)--(?!\S)", "–", text)  # alone, and not before an option's name
    return re.sub(r"\\([%&#_$])", r"\1", text).strip()


def results(study: Study) -> str:
    """The main model's accuracy, the networks under both budgets, and the recipes of ours."""
    if not study.records:
        return NOTHING
    large = study.large if study.large.runs("main") else None
    as_stated = [accuracy(large), reached.best_epoch(large), verdicts.changes(large)] if large else []
    told = [accuracy(study), verdicts.rivals(study), verdicts.changes(study), beyond.best_in_short(study)]
    networks = tables.models(study)
    below = f"Both tables are of `{study.profile}`. Differences are over the seeds that both have."
    if any("," in row[-1] for row in networks.rows):
        below += " Of two numbers of seeds, the first is under the reference's budget."
    parts = [
        _paragraph(*as_stated),
        _paragraph(*told),
        markdown_table(networks),
        _paragraph(below),
        ours(study),
        _paragraph(sentences.state(study), sentences.source(study), provenance(study), other_budget(study)),
    ]
    return "\n\n".join(filter(None, parts))


def ours(study: Study) -> str:
    """The recipes of ours: what each is, what they cost and reach, and how that is to be read."""
    if not study.runs("best"):
        return _paragraph(beyond.best(study))
    read = (
        f"Sites kept: of the simulated ones, on the split, at how many a recipe keeps {100 * ALONE:.0f} in a hundred "
        "of its accuracy on unchanged pictures, once what the reader reads of each photograph is undone. All: its "
        "accuracy at the site that changes all at once; reader and travelled recipes practised such changes, and no "
        "real other site was tried. Epochs: of the networks that it starts from, then its own, times the pictures "
        "shown of an image where these are several. Split: ± over seeds where there are several. Out of fold: "
        f"{beyond.by_seeds(beyond.seeds_out_of_fold(study))}, with 95 % intervals. Over best: on the other four "
        f"folds{beyond.in_view(study)}; {beyond.by_seeds(beyond.seeds_out_of_fold(study, 'best'))}, and of so many "
        "comparisons uncorrected."
    )
    others = beyond.others(study).items()
    parts = [
        _paragraph(beyond.best(study)),
        "\n".join(_paragraph(f"- **{name.capitalize()}**: {words}.", indent="  ") for name, words in others),
        _paragraph(beyond.last_rows(study)),
        markdown_table(tables.recipes(study)),
        _paragraph(read, reached.over_main(study)),
    ]
    return "\n\n".join(filter(None, parts))


# What changes some recipe, and how such rows are to be read.
NOTES = {
    "aug_flips": "What led to the best recipe.",
    "best": "On the split, which chose some of these; the README has them out of fold.",
    "travelled": "Each row trains on about as many pictures, the last alone from random weights.",
    "patient": "Each row leaves one of its levers as the best recipe has it.",
    "best_short": "What slows learning down at first, as mixing and averaging do, may still win in the long run.",
}


def tried(study: Study) -> str:
    """What moved the accuracy and what did not: under the reference's budget, and changes to each recipe of ours."""
    if not study.records:
        return NOTHING
    parts = [
        "### The reference's study",
        _paragraph(f"One of its {len(STUDY)} experiments trains on all labelled images, and so has no row."),
        markdown_table(tables.grid(study)),
        *(changes(study, base) for base in dict.fromkeys(BASES.get(group, "main") for group in compare.BEYOND)),
        _paragraph(beyond.sharpness(study)),
        "### What is still wrong",
        _paragraph(opinions.sentence(study), beyond.doubts(study)),
    ]
    return "\n\n".join(filter(None, parts))


def changes(study: Study, base: str) -> str:
    """What was changed in a recipe, a heading and a table; "" before such rows are recorded."""
    table = tables.changes(study, base)
    if len(table.rows) < 2:
        return ""
    parts = (f"### Changes to {beyond.start(study, base)}", _paragraph(NOTES.get(base, "")), markdown_table(table))
    return "\n\n".join(filter(None, parts))


def accuracy(study: Study, name: str = "main") -> str:
    """Profile and devices, and the final epoch's accuracy of main or another experiment."""
    runs = study.runs(name) or study.records
    config, where = runs[0].info["config"], join(Study(runs, study.profile).devices)
    return (
        f"Under the profile `{study.profile}`, with {config['pixels']} × {config['pixels']} pixels and "
        f"{reached.length(study, runs[0].experiment)}, on {where}: {reached.headline(study, name)}"
    )


def provenance(study: Study) -> str:
    """What the runs were made with, by the first one's commit and how many others."""
    first, *others = dict.fromkeys(str(record.info["commit"]) for record in study.records)
    more = f" and {count(len(others))} more, which the records name" if others else ""
    return f"Made with PyTorch {' and '.join(study.versions)}, at commit {first}{more}."


def other_budget(study: Study) -> str:
    """What these accuracies are not."""
    full = PROFILES["full"]
    if study.profile == full.name:
        return ""
    told = (
        f"Where `{full.name}` is not named, these are accuracies under `{study.profile}`, and not those of "
        f"`{full.name}` ({full.pixels} × {full.pixels} pixels, {full.epochs} epochs), "
    )
    if not study.full:
        return f"{told}which is not recorded."
    made, planned = study.large.counted
    return (
        f"{told}of whose study {made} of {planned} runs are recorded, made on {join(study.large.devices)} with PyTorch "
        f"{join(study.large.versions)}."
    )


def claims(study: Study) -> str:
    """Each claim of the reference, what its other files say, what is measured, and the verdict."""
    if not study.records:
        return NOTHING
    rows = []
    for _, row in study.claims.iterrows():
        digits = 2 if row["unit"] else 3
        sign = "+" if row["unit"] == "points" else ""
        between = row["low"] < row["high"]  # a count is exact, and what is not measured is nan
        interval = f"{row['low']:{sign}.{digits}f} to {row['high']:{sign}.{digits}f}" if between else "–"
        elsewhere = without_source(row["elsewhere"])
        measured, interval = ((text or "–").replace("-", "−") for text in (row["measured"], interval))
        if row["profile"] not in ("", study.profile):
            measured += f", `{row['profile']}`"
        rows.append((row["claim"], row["stated"], elsewhere, measured, interval, row["verdict"]))
    where = f"Measured (`{study.profile}` unless marked)"
    head = ("Claim", "Stated", "Its other files", where, "95 % interval", "Verdict")
    told = _paragraph(verdicts.claims(study), sentences.deviation(study), verdicts.by_best_epochs(study))
    return f"{told}\n\n{_table(head, rows)}"


def asked(study: Study) -> str:
    """What the analyses found of the main model, of the best recipe and of the published one, as a table."""
    if not study.records:
        return NOTHING
    found = [name for name in ("main", "best", reached.foremost(study)) if name]
    analysed = [name for name in dict.fromkeys(found) if analysis.of_experiment(study.analyses, name)]
    return markdown_table(tables.trust(study, analysed)) if analysed else UNASKED


def trust(study: Study) -> str:
    """What the analyses of the trained networks found: recipe by recipe, question by question."""
    if not study.records:
        return NOTHING
    if not study.analyses:
        return UNASKED
    parts = []
    for name, words in RECIPES.items():
        found = analysis.of_experiment(study.analyses, name)
        keys = [key for key in ASKED if name == "main" or (key != "reader" and answers.QUESTIONS[key][0] in found)]
        told = {ASKED[key]: answers.answer(key, found) for key in keys}
        if far := "travel" not in found and elsewhere(study, name):
            told[ASKED["travel"]] = far
        if told:
            lines = [_paragraph(f"- **{title}** {text}", indent="  ") for title, text in told.items()]
            parts += [
                f"### {words[0].upper()}{words[1:]}",
                _paragraph(SHORT if name == "best_short" else ""),
                "\n".join(lines),
            ]
    return "\n\n".join(filter(None, parts))


def network(study: Study) -> str:
    """The published network: the run that made it, what it is built of, its size, and what it learnt from."""
    run, _ = load_set(WEIGHTS)
    config, data, macs = run["config"], run["data"], run["model"]["macs"] / 1e6
    model, train, pixels = config["model"], config["train"], config["pixels"]
    parameters = run["model"]["parameters"]
    halved = ", then halved" if model.get("halved") else ""
    part = f"the central {config['crop']} pixels of a photograph" if config["crop"] else "a photograph"
    copies = f" and {train['copies']} more versions of each" if train.get("copies") else ""
    after = f", going on from a network of {RECIPES[train['after']]}" if train.get("after") else ""
    told = (
        f"The run `{run['experiment']}` of the profile `{run['profile']}`: {BUILT.get(model['name'], model['name'])}. "
        f"{parameters:,} parameters, {2 * parameters / 1e6:.1f} MB in half precision; {macs:,.0f} million "
        f"multiply-accumulates for {part}, seen as {pixels} × {pixels}{halved}. It trained on {data['train']:,} "
        f"images{copies} for {train['epochs']} epochs{after}."
    )
    if not data["validation"]:
        told += (
            " No image is left to measure it on: the numbers below are those of "
            f"`{measured(run['experiment'])}`, the same recipe on four fifths of them."
        )
    return _paragraph(told)


def evaluation(study: Study) -> str:
    """The accuracy of the published recipe, its classes one by one, its mistakes and its probabilities."""
    if not study.records:
        return NOTHING
    run, _ = load_set(WEIGHTS)
    name = measured(run["experiment"])
    told = [accuracy(study, name), sentences.source(study), reached.best_epoch(study, name)]
    told += [reached.cross_validation(study, name)]
    told += [other_budget(study)] if name == "main" else [reached.unseen(study, name)]
    below = [reached.classes(study, name), reached.mistakes(study, name), confidence(study, name)]
    found = analysis.of_experiment(study.analyses, name)
    if "trust" in found and run.get("temperatures"):
        below += ["So `predict` divides the logits by a temperature.", answers.answer("calibration", found)]
    undone = [answers.answer(key, found) for key in ("reader", "reading")] if "reading" in found else []
    below += undone or [elsewhere(study, name)]
    return f"{_paragraph(*told)}\n\n{markdown_table(tables.per_class(study, name))}\n\n{_paragraph(*below)}"


def elsewhere(study: Study, name: str) -> str:
    """What an experiment keeps at other sites, simulated; "" where that is not analysed."""
    for found in (analysis.of_experiment(study.analyses, name), study.analyses):
        if "travel" in found and name in found["travel"]["result"]["experiments"]:
            return answers.sites(found["travel"]["result"], name)
    return ""


def confidence(study: Study, name: str = "main") -> str:
    """How far the probabilities may be believed, run by run, before any temperature."""
    runs = [record.validation() for record in evaluate.validated(study.runs(name))]
    if not runs:
        return "Its probabilities are not measured yet."
    error = np.mean([calibration.ece(run.labels, run.probabilities) for run in runs])
    claimed = np.mean([run.probabilities.max(1).mean() for run in runs])
    right = np.mean([evaluate.accuracy(run.labels, run.predicted) for run in runs])
    return (
        f"Its probabilities on the {len(runs[0].labels)} validation images, as they come out of the network, claim "
        f"{100 * claimed:.1f} % on average where {100 * right:.1f} % are right; the expected calibration error is "
        f"{100 * error:.1f} points ({calibration.BINS} bins of equally many images, mean of "
        f"{plural(len(runs), 'seed')})."
    )


def speed(timings: Sequence[dict[str, Any]], tell: Callable[[dict[str, Any]], str]) -> str:
    """What `bloodcell bench` measured, machine by machine."""
    return "\n\n".join(tell(results).strip() for results in timings)


def _paragraph(*told: str, indent: str = "") -> str:
    text = " ".join(markdown(sentence) for sentence in told if sentence)
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)


def markdown_table(table: tables.Table) -> str:
    """A table of the report in Markdown, its units in the head."""
    units = table.units or [""] * len(table.head)
    head = [f"{name} {unit}".strip() for name, unit in zip(table.head, units)]
    return _table(head, [row for row in table.rows if not isinstance(row, str)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(markdown(cell) for cell in line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
