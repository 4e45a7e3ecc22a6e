"""The report's tables, each a LaTeX file from records: booktabs, and a dash where nothing is recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bloodcell_lib import evaluate
from bloodcell_lib.experiments import STUDY
from bloodcell_lib.numbers import DASH, Study, count, escape, number, plain, signed, without_source

GROUPS = ("attention", "regularisation", "schedule", "augmentation")
# What the recipe's fields are called; (part of the configuration, field, words).
SETTINGS = (
    ("train", "optimiser", "Optimiser"),
    ("train", "learning_rate", "Learning rate"),
    ("train", "schedule", "Schedule"),
    ("train", "epochs", "Epochs"),
    ("train", "batch_size", "Batch"),
    ("train", "weight_decay", "Weight decay"),
    ("train", "label_smoothing", "Label smoothing"),
    ("train", "clip", "Gradient norm at most"),
)
WORDS = {"adamw": "AdamW", "adam": "Adam", "cosine": "cosine", "constant": "constant", "step": "step"}


def tables(study: Study) -> dict[str, str]:
    """File name -> LaTeX of a tabular, without float and caption, which report.tex gives."""
    return {
        "recipe.tex": recipe(study),
        "models.tex": models(study),
        "ablations.tex": ablations(study),
        "per_class.tex": per_class(study),
        "claims.tex": claims(study),
    }


def tabular(columns: str, head: Sequence[str], rows: Sequence[Sequence[str] | str], rules: str = "") -> str:
    """A booktabs tabular; a row that is a string is put in as it is."""
    body = [row if isinstance(row, str) else " & ".join(row) + r" \\" for row in rows]
    top = [rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule", " & ".join(head) + r" \\"]
    return "\n".join([*top, *([rules] if rules else []), r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def recipe(study: Study) -> str:
    """The main recipe beside the baselines' budget, from the records of each."""
    main = study.main("config") or {}
    baseline = next((r.info["config"] for n in STUDY if STUDY[n].group == "baseline" for r in study.runs(n)), {})
    rows = [(words, _setting(main, part, field), _setting(baseline, part, field)) for part, field, words in SETTINGS]
    # Two settings side by side, to save height.
    half = (len(rows) + 1) // 2
    pairs = [(*a, *b) for a, b in zip(rows[:half], rows[half:])]
    head = ("Setting", "Main", "Baselines") * 2
    return tabular("lll@{\\hspace{2.2em}}lll", head, pairs)


def _setting(config: dict, part: str, field: str) -> str:
    value = config.get(part, {}).get(field)
    if part == "train" and field == "weight_decay" and config and config["train"].get("optimiser") == "adam":
        value = 0.0  # plain Adam takes none
    if value is None:
        return DASH
    return WORDS.get(value, escape(value)) if isinstance(value, str) else "none" if value == 0 else plain(value)


def models(study: Study) -> str:
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
    second = r" & (M) & (M) & budget (\%) & (\%) & (points, 95\,\% interval) & \\"
    return tabular("lrrrrrr", head, rows, second)


def ablations(study: Study) -> str:
    """Each change of the main recipe: accuracy, and the corrected exact test against the main model."""
    rows: list[Sequence[str] | str] = [("Main recipe", _accuracy(study.row("main")), "")]
    for group in GROUPS:
        rows.append(r"\addlinespace[2pt]")
        for name, row in STUDY.items():
            if row.group == group:
                p = study.row(name).get("p_holm")
                small = p is not None and p < 0.001
                rows.append((row.title, _accuracy(study.row(name)), "$<$0.001" if small else number(p, 3)))
    return tabular("lrr", ("Experiment", r"Accuracy (\%)", "$p$"), rows)


def per_class(study: Study) -> str:
    """Precision, recall and F1 of the main model by class, all seeds pooled."""
    head = ("Class", "Precision", "Recall", "F1")
    if study.pooled is None:
        return tabular("lrrr", head, [(DASH,) * 4])
    scores = evaluate.per_class(study.pooled.labels, study.pooled.predicted)
    keys = ("precision", "recall", "f1")
    rows: list[Sequence[str] | str] = [
        (str(title), *(number(row[key], 3) for key in keys)) for title, row in scores.iterrows()
    ]
    rows += [r"\midrule", ("Mean", *(number(scores[key].mean(), 3) for key in keys))]
    return tabular("lrrr", head, rows)


def claims(study: Study) -> str:
    """The reference's claims, what its other files say, what is measured, and the verdict by the stated rule."""
    rows = []
    for key, row in study.claims.iterrows():
        digits = 3 if key == "main_f1" else 1
        bounds = [
            signed(row[k], digits) if row["unit"] == "points" else number(row[k], digits) for k in ("low", "high")
        ]
        measured = escape(row["measured"].partition(" (")[0].removesuffix(" %")) or DASH
        if row["measured"] and row["low"] < row["high"]:
            measured += f" [{bounds[0]}, {bounds[1]}]"
        claim, elsewhere = (_shorter(text) for text in (row["claim"], without_source(row["elsewhere"])))
        rows.append((escape(claim), escape(row["stated"]), escape(elsewhere), measured, row["verdict"]))
    # The third column breaks its lines: one claim there is a sentence.
    columns = r"ll>{\raggedright\arraybackslash}p{2.7cm}ll"
    return tabular(columns, ("Claim", "Stated", "Its other files", "Measured [interval]", "Verdict"), rows)


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
    if not row:
        return DASH
    spread = "" if np.isnan(row["std"]) else rf" $\pm$ {number(100 * row['std'], 2)}"
    return number(100 * row["mean"], 2) + spread


def _difference(row: dict) -> str:
    if not row or np.isnan(row["difference"]):
        return DASH
    return f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]"


def _seeds(*rows: dict) -> str:
    found = [count(row["seeds"]) if row else "0" for row in rows]
    return found[0] if len(set(found)) == 1 else ", ".join(found)
