"""Sentences of the report that depend on numbers, each chosen by a rule that the report states, never typed there.

The rule for a difference: it is called one only where the 95 % interval of the paired difference leaves zero out.
Every sentence reads right when part of a study, or nothing at all, is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bloodcell_lib import evaluate
from bloodcell_lib.cells import TITLES
from bloodcell_lib.compare import AGREES, BASES, BEYOND, DIFFERS
from bloodcell_lib.latex import count, escape, join, number, plural, signed
from bloodcell_lib.numbers import REFERENCE_EPOCHS, REFERENCE_PIXELS, Study
from bloodcell_lib.plans import EXTRA, STUDY
from bloodcell_lib.reference import CLAIMS

UNMEASURED = "has not been measured yet"
NAMED = 3  # changes beyond the reference's that a sentence names
BASELINES = {name: row.title for name, row in STUDY.items() if row.group == "baseline"}


def sentences(study: Study) -> dict[str, str]:
    """Name without backslash -> LaTeX text."""
    return {
        "Headline": headline(study),
        "StudyState": state(study),
        "DataSentence": source(study),
        "ImageTreatment": treatment(study),
        "BudgetDeviation": deviation(study),
        "SeVerdict": effect(study, "no_se"),
        "RegularisationVerdict": effect(study, "reg_none"),
        "CosineVerdict": effect(study, "lr_constant"),
        "StepVerdict": effect(study, "lr_step"),
        "AugmentationVerdict": effect(study, "aug_none"),
        "DepthVerdict": effect(study, "as_described"),
        "ChangesSentence": changes(study),
        "BeyondSentence": beyond(study),
        "FlipsSentence": flips(study),
        "GainsSentence": gains(study),
        "ClaimsSentence": claims(study),
        "HolmSentence": holm(study),
        "BudgetSentence": budget(study),
        "RivalsSentence": rivals(study),
        "BestEpochSentence": best_epoch(study),
        "CvSentence": cross_validation(study),
        "ClassSentence": classes(study),
        "ConfusionSentence": mistakes(study),
        "TrustSentence": trust(study),
        "ClosingSentence": closing(study),
    }


def headline(study: Study) -> str:
    """The main model's accuracy."""
    row = study.row("main")
    if not row:
        return "The main model has not been measured yet."
    spread = "" if np.isnan(row["std"]) else rf" $\pm$ {number(100 * row['std'], 2)}"
    return (
        rf"With {plural(row['seeds'], 'seed')}, the main model reaches {number(100 * row['mean'], 2)}{spread}\,\% of "
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
    return (
        rf"The reference states {stated} $\times$ {stated} pixels and {long} epochs; the runs reported here, of the "
        rf"budget \texttt{{{escape(study.profile)}}}, have {pixels} $\times$ {pixels} and {epochs}: they test its "
        "gains at that size, and its accuracies not at all."
    )


def effect(study: Study, without: str) -> str:
    """What the main recipe gains over the experiment `without` one of its parts, by the rule at the top."""
    row = study.row(without)
    if not row or not row["common_seeds"]:
        return UNMEASURED
    gain, low, high, seeds = -row["difference"], -row["high"], -row["low"], int(row["common_seeds"])
    interval = rf"95\,\% interval {signed(low)} to {signed(high)}"
    if low > 0 or high < 0:
        verb = "raises" if low > 0 else "lowers"
        return rf"{verb} accuracy by {number(abs(gain), 2)} points ({interval}, {plural(seeds, 'seed')})"
    return rf"makes no difference that {plural(seeds, 'seed')} can show ({signed(gain)} points, {interval})"


def changes(study: Study) -> str:
    """Which single changes of the main recipe move accuracy, by the rule at the top; the largest first."""
    names = [name for name, row in STUDY.items() if row.group not in ("main", "baseline")]
    rows = [row for name in names if (row := study.row(name)) and row["common_seeds"]]
    if not rows:
        return "No change to the main recipe is measured yet."
    moved = _moved(rows)
    first = f"Of {plural(len(rows), 'single change')} to the main recipe, "
    if not moved:
        return f"{first}none moves accuracy."
    return f"{first}{len(moved)} move{'s' * (len(moved) == 1)} accuracy: {join(moved)}."


def _moved(rows: Sequence[dict]) -> list[str]:
    """The rows of the study's table that move accuracy, by the rule at the top, in words; the largest first."""
    moved = sorted((row for row in rows if row["low"] > 0 or row["high"] < 0), key=lambda row: -abs(row["difference"]))
    return [
        rf"{row['title'][0].lower()}{escape(row['title'][1:])} ({signed(row['difference'])} points, 95\,\% interval "
        rf"{signed(row['low'])} to {signed(row['high'])})"
        for row in moved
    ]


def beyond(study: Study) -> str:
    """What the rows that the reference's study does not have do to accuracy, by the same rule."""
    rows = [row for name in EXTRA if (row := study.row(name)) and row["group"] in BEYOND and row["common_seeds"]]
    if not rows:
        return "No change beyond the reference's own is measured yet."
    bases = dict.fromkeys(BASES.get(row["group"], "main") for row in rows)
    against = join([{"main": "the main recipe"}.get(name, STUDY[name].title.lower() + " alone") for name in bases])
    moved = _moved(rows)
    first = f"Of {plural(len(rows), 'change')} beyond the reference's own, set against {against}, "
    if not moved:
        return f"{first}none moves accuracy."
    most = ", most of all" * (len(moved) > NAMED)
    return f"{first}{len(moved)} move{'s' * (len(moved) == 1)} accuracy{most}: {join(moved[:NAMED])}."


def flips(study: Study) -> str:
    """What flips alone say about the main recipe's augmentation, where they say anything by the rule at the top."""
    row = study.row("aug_flips")
    if not row or not row["common_seeds"] or not row["low"] > 0:
        return ""
    return (
        rf"The reference's augmentation is a case of its own. Flips alone reach {number(100 * row['mean'], 2)}\,\%"
        f": in {study.budget.epochs} epochs, what rotation, scale, shifts and colour add to them costs more than it "
        "gives. Whether a longer training would turn this round, these runs cannot say."
    )


def gains(study: Study) -> str:
    """How the reference's claimed gains of single parts fare."""
    keys = [claim.key for claim in CLAIMS if claim.kind == "difference"]
    return _verdicts(study, keys, f"the {len(keys)} gains that the project ascribes to parts of its recipe")


def claims(study: Study) -> str:
    """How all its claims fare."""
    return _verdicts(study, [claim.key for claim in CLAIMS], f"{len(CLAIMS)} claims in all")


def _verdicts(study: Study, keys: Sequence[str], what: str) -> str:
    verdicts = study.claims.loc[list(keys), "verdict"].tolist()
    agree, differ = verdicts.count(AGREES), verdicts.count(DIFFERS)
    rest = len(verdicts) - agree - differ
    if not agree + differ:
        return f"Of {what}, none can be tested with what is recorded."
    parts = []
    if agree:
        parts.append(f"{agree} agree{'s' * (agree == 1)} with what we measure")
    if differ:
        parts.append(f"{differ} do{'es' * (differ == 1)} not")
    if not agree:
        parts[-1] += " agree with what we measure"
    if rest:
        parts.append(f"{rest} cannot be tested with what is recorded")
    return f"Of {what}, {join(parts)}."


def holm(study: Study) -> str:
    """How many differences the corrected exact test finds."""
    tested = study.table["p_holm"].dropna() if len(study.table) else []
    if not len(tested):
        return "No experiment can be tested against the main one yet."
    found = int((tested < 0.05).sum())
    return (
        rf"Holm's correction over all {plural(len(tested), 'comparison')} with the main model leaves {found} with an "
        rf"adjusted $p$ below 0.05."
    )


def budget(study: Study) -> str:
    """Whether the reference's gap to its baselines is one of architecture or of training budget."""
    gaps = []
    for name, title in BASELINES.items():
        small, full = study.row(name), study.row(f"{name}_full")
        if small.get("common_seeds") and full.get("common_seeds"):
            gaps.append((title, -small["difference"], -full["difference"], full["low"] > 0))
    if not gaps:
        return (
            "Whether the reference's gap is one of architecture or of training budget cannot be said yet: it takes "
            "the baselines under both budgets, with seeds that the main model has too."
        )
    changes = [f"from {signed(a)} to {signed(b)} points for {title}" for title, a, b, _ in gaps]
    told = f"With the main model's whole recipe, what it is ahead by goes {join(changes)}."
    if past := [title for title, _, _, ahead in gaps if ahead]:
        told += f" By the rule above, {join(past)} then {'is' if len(past) == 1 else 'are'} ahead of it."
    behind = [(title, a, b) for title, a, b, _ in gaps if a > 0]  # a gap that was never there needs no explanation
    halved = [title for title, a, b in behind if b <= a / 2]
    if not behind:
        return told
    if not halved:
        return f"{told} The gap is halved for none of them, and so for the larger part not one of training budget."
    which = "all of them" if len(halved) == len(behind) else join(halved)
    return f"{told} The gap is at least halved for {which}, and there for the larger part one of training budget."


def rivals(study: Study) -> str:
    """Which baselines are ahead of the main model under its own recipe, by the rule at the top; "" before all are."""
    rows = {title: study.row(f"{name}_full") for name, title in BASELINES.items()}
    if not all(row and row["common_seeds"] for row in rows.values()):
        return ""
    ahead = [
        rf"{title} by {number(row['difference'], 2)} points (95\,\% interval {number(row['low'], 2)} to "
        rf"{number(row['high'], 2)})"
        for title, row in rows.items()
        if row["low"] > 0
    ]
    if not ahead:
        return "Under its own recipe, none of the baselines is ahead of it."
    return f"Under its own recipe it is behind {join(ahead)}."


def best_epoch(study: Study) -> str:
    """How much the reference's way of picking an epoch flatters."""
    row = study.row("main")
    if not row:
        return "How much it flatters to report the best epoch, as the reference does, is not measured yet."
    best, final = 100 * row["best_epoch_mean"], 100 * row["mean"]
    return (
        rf"By its best epoch, which is what the reference reports, the model would read {number(best, 2)}\,\%, "
        f"{number(best - final, 2)} points more than it has when training ends."
    )


def cross_validation(study: Study) -> str:
    """The folds, each a split of its own."""
    folds = [record for name, row in EXTRA.items() if row.group == "cv" for record in study.runs(name)]
    if not folds:
        return "Stratified five-fold cross-validation is planned and not recorded yet."
    which = {record.experiment for record in folds}
    if len(which) < 5:
        return f"Of the five folds of cross-validation, {len(which)} are recorded."
    scores = 100 * np.array([record.info["final_validation_accuracy"] for record in folds])
    pooled = evaluate.pool([record for record in folds if record.seed == min(r.seed for r in folds)])
    right, n = int((pooled.labels == pooled.predicted).sum()), len(pooled.labels)
    low, high = (100 * bound for bound in evaluate.wilson(right, n))
    return (
        rf"In stratified five-fold cross-validation, {number(100 * right / n, 2)}\,\% of {count(n)} images are named "
        rf"rightly by a network that has not seen them (95\,\% interval {number(low, 2)} to {number(high, 2)}\,\%); "
        rf"single folds lie between {number(scores.min(), 2)} and {number(scores.max(), 2)}\,\%."
    )


def classes(study: Study) -> str:
    """The classes with the lowest and highest F1."""
    if study.pooled is None:
        return "Scores by class are not measured yet."
    f1 = evaluate.per_class(study.pooled.labels, study.pooled.predicted)["f1"]
    macro = evaluate.macro_f1(study.pooled.labels, study.pooled.predicted)
    return (
        f"Macro F1 is {number(macro, 3)}; F1 is lowest for {f1.idxmin().lower()}s ({number(f1.min(), 3)}) and "
        f"highest for {f1.idxmax().lower()}s ({number(f1.max(), 3)})."
    )


def mistakes(study: Study) -> str:
    """The three most frequent confusions."""
    if study.pooled is None:
        return "Its mistakes are not counted yet."
    labels, predicted = study.pooled.labels, study.pooled.predicted
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
