"""Sentences of the report that depend on numbers, each chosen by a rule that the report states, never typed there.

Every sentence reads right when part of a study, or nothing at all, is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

from bloodcell_lib import beyond, opinions, reached, verdicts
from bloodcell_lib.claims import AGREES, DIFFERS
from bloodcell_lib.data import SYNTHETIC
from bloodcell_lib.latex import count, escape, join, plural
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
        "BestSentence": beyond.best(study),
        "BestInShort": beyond.best_in_short(study),
        "FurtherSentence": beyond.further(study),
        "LeversSentence": beyond.levers(study),
        "OpinionsSentence": opinions.sentence(study),
        "FlipsSentence": verdicts.flips(study),
        "GainsSentence": verdicts.gains(study),
        "ClaimsSentence": verdicts.claims(study),
        "HolmSentence": verdicts.holm(study),
        "BudgetSentence": verdicts.budget(study),
        "RivalsSentence": verdicts.rivals(study),
        "BestEpochSentence": reached.best_epoch(study),
        "CvSentence": reached.cross_validation(study),
        "ClassSentence": reached.classes(study),
        "ConfusionSentence": reached.mistakes(study),
        "TrustSentence": trust(study),
        "LargeSentence": large(study),
        "UndoneSentence": beyond.undone(study),
        "ClosingSentence": closing(study),
    }


def state(study: Study) -> str:
    """Which experiments are recorded with which seeds."""
    planned = study.budget.seeds
    if not study.records:
        return "No run of the study is recorded yet; every number below that a run would give is a dash."
    made, total = study.counted
    if made == total:
        first = f"All {total} runs of the study are recorded ({len(STUDY)} experiments, {plural(len(planned), 'seed')})"
    else:
        first = f"The study is partial: {made} of its {total} runs are recorded ({_by_seeds(study, list(STUDY))})"
    extra = sum(len(set(study.seeds(name)) & set(planned)) for name in EXTRA)
    return first + (f"; beyond it, {plural(extra, 'run')}." if extra else "; none beyond it.")


def large(study: Study) -> str:
    """What the runs of `full` that stand beside the study's were made with; "" where there are none."""
    if not study.full:
        return ""
    with_what, where = (escape(join(words)) for words in (study.large.versions, study.large.devices))
    return rf"Those under \texttt{{{study.large.profile}}}: {with_what}, on {where}."


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
    if data["source"] == SYNTHETIC:
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
        rf"The reference states {stated} $\times$ {stated} pixels and {long} epochs; the study has a smaller budget, "
        rf"\texttt{{{escape(study.profile)}}}, of {pixels} $\times$ {pixels}{cut} and {epochs}. "
        f"{_tested(study)}"
    )


def _tested(study: Study) -> str:
    """By what runs that which the reference states is tested."""
    large = study.large
    if not (study.claims["profile"] == large.profile).any():
        return "They test its gains at that size, and its accuracies not at all."
    made, planned = large.counted
    return (
        rf"Claims are tested under \texttt{{{large.profile}}}, which has the reference's ({made} of {planned} runs "
        rf"recorded), or, where a gain has fewer seeds there, under \texttt{{{escape(study.profile)}}}."
    )


def headline(study: Study) -> str:
    """The main recipe's accuracy, and what it reaches under `full` where that is recorded beside it."""
    told, row = reached.headline(study), study.large.row("main")
    return rf"{told[:-1]}, and under \texttt{{full}} {reached.percent(row)}\,\%." if row else told


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
        return f"The validation accuracy of {stated} is not what we measure, by best epochs as well: {measured}."
    measured = escape(study.claims.loc["main_accuracy", "measured"])
    smaller = f"; at a smaller size and with fewer epochs we measure {measured}" if measured else ""
    return f"Whether the validation accuracy of {stated} can be reached is still open here{smaller}."
