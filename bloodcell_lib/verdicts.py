"""Sentences that compare: what each part is worth, how claims fare, which network is ahead; each by a stated rule.

The rule for a difference: it is called one only where the 95 % interval of the paired difference leaves zero out, and
where it is of two seeds or more: the interval of one seed knows nothing of another seed's luck.
"""

from __future__ import annotations

from collections.abc import Sequence

from bloodcell_lib.claims import AGREES, DIFFERS
from bloodcell_lib.compare import in_sentence, of_study
from bloodcell_lib.latex import escape, join, number, plural, signed
from bloodcell_lib.numbers import Study
from bloodcell_lib.plans import STUDY
from bloodcell_lib.reference import CLAIMS

UNMEASURED = "has not been measured yet"
BASELINES = {name: row.title for name, row in STUDY.items() if row.group == "baseline"}
NAMED = 2  # changes that a sentence names, at most
JUDGED = 2  # seeds from which on a difference is judged


def effect(study: Study, without: str) -> str:
    """What the main recipe gains over the experiment `without` one of its parts, by the rule at the top."""
    row = study.row(without)
    if not row or not row["common_seeds"]:
        return UNMEASURED
    gain, low, high, seeds = -row["difference"], -row["high"], -row["low"], int(row["common_seeds"])
    interval = rf"95\,\% interval {signed(low)} to {signed(high)}"
    if seeds < JUDGED:
        return rf"cannot be judged by {plural(seeds, 'seed')} ({signed(gain)} points, {interval} over images)"
    if low > 0 or high < 0:
        verb = "raises" if low > 0 else "lowers"
        return rf"{verb} accuracy by {number(abs(gain), 2)} points ({interval}, {plural(seeds, 'seed')})"
    return f"makes no difference that {plural(seeds, 'seed')} can show ({signed(gain)} points)"


def changes(study: Study) -> str:
    """Which variants of the main recipe differ from it in accuracy, by the rule at the top; the largest first."""
    names = [name for name, row in STUDY.items() if row.group not in ("main", "baseline")]
    rows = [row for name in names if (row := study.row(name)) and row["common_seeds"] >= JUDGED]
    if not rows:
        return "No variant of the main recipe is measured with two seeds yet."
    return moved(f"Of {plural(len(rows), 'variant')} of the main recipe", rows)


def moved(first: str, rows: Sequence[dict]) -> str:
    """`first`, and which of the rows differ in accuracy from what they change, the largest named."""
    moved = sorted((row for row in rows if row["low"] > 0 or row["high"] < 0), key=lambda row: -abs(row["difference"]))
    if not moved:
        return f"{first}, none differs from it in accuracy."
    told = [
        rf"{escape(in_sentence(row['title']))} ({signed(row['difference'])} points, 95\,\% interval "
        rf"{signed(row['low'])} to {signed(row['high'])})"
        for row in moved[:NAMED]
    ]
    more = ", most of all" * (len(told) < len(moved))
    return f"{first}, {len(moved)} differ{'s' * (len(moved) == 1)} from it in accuracy{more}: {join(told)}."


def flips(study: Study) -> str:
    """What flips alone say about the main recipe's augmentation, where they say anything by the rule at the top."""
    row = study.row("aug_flips")
    if not row or row["common_seeds"] < JUDGED or not row["low"] > 0:
        return ""
    return (
        rf"Flips alone reach {number(100 * row['mean'], 2)}\,\%"
        f": in {study.budget.epochs} epochs, what rotation, scale, shifts and colour add costs more than it gives."
    )


def gains(study: Study) -> str:
    """How the reference's claimed gains of single parts fare, and which cannot be told from none."""
    keys = [claim.key for claim in CLAIMS if claim.kind == "difference"]
    told = _verdicts(study, keys, f"the {len(keys)} gains that the project ascribes to parts of its recipe")
    agreeing = study.claims.loc[keys][study.claims.loc[keys, "verdict"] == AGREES]
    unsure = int(((agreeing["low"] <= 0) & (agreeing["high"] >= 0)).sum())
    if not unsure:
        return told
    which = "The one that agrees" if len(agreeing) == 1 else f"Of those that agree, {unsure}"
    return f"{told} {which} cannot be told from no gain at all."


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
        parts.append(f"{rest} cannot be tested here")
    return f"Of {what}, {join(parts)}."


def holm(study: Study) -> str:
    """How many differences the corrected exact test finds among the reference's study and what mirrors it."""
    tested = of_study(study.table)["p_holm"].dropna() if len(study.table) else []
    if not len(tested):
        return "No experiment can be tested against the main one yet."
    found = int((tested < 0.05).sum())
    return (
        rf"Holm's correction over all {plural(len(tested), 'comparison')} with the main model leaves {found} with an "
        rf"adjusted $p$ below 0.05."
    )


def by_best_epochs(study: Study) -> str:
    """The claimed gains by best epochs, as the reference states at least some of them; "" where none is measured."""
    found = []
    for claim in (claim for claim in CLAIMS if claim.kind == "difference"):
        tested = study if study.claims.loc[claim.key, "profile"] == study.profile else study.large
        ours, theirs = (
            {record.seed: record.accuracy("best") for record in tested.runs(name)}
            for name in (claim.experiment, claim.against)
        )
        if seeds := ours.keys() & theirs.keys():
            gain = sum(ours[seed] - theirs[seed] for seed in seeds) / len(seeds)
            found.append(f"{in_sentence(claim.claim.partition(',')[0])} {signed(100 * gain)}")
    if not found:
        return ""
    return (
        "These gains are of final epochs; the reference's are, at least in part, of best ones, by which our runs have "
        f"{join(found)} points, without an interval: images' answers are kept of final epochs alone."
    )


def budget(study: Study) -> str:
    """Whether the reference's gap to its baselines is one of architecture or of training budget."""
    gaps = []
    for name, title in BASELINES.items():
        small, full = study.row(name), study.row(f"{name}_full")
        if small.get("common_seeds") and full.get("common_seeds"):
            gaps.append((title, small, full))
    if not gaps:
        return (
            "Whether the reference's gap is one of architecture or of recipe and length cannot be said yet: it takes "
            "the baselines under both, with seeds that the main model has too."
        )
    changes = [f"from {_ahead(small)} to {_ahead(full)} for {title}" for title, small, full in gaps]
    told = f"With the main model's whole recipe and length, what it is ahead by goes, in points, {join(changes)}."
    if past := [title for title, _, full in gaps if full["low"] > 0 and full["common_seeds"] >= JUDGED]:
        told += f" By the rule above, {join(past)} then {'is' if len(past) == 1 else 'are'} ahead of it."
    # A gap that was never there needs no explanation.
    behind = [
        (title, -small["difference"], -full["difference"])
        for title, small, full in gaps
        if small["difference"] < 0 and min(small["common_seeds"], full["common_seeds"]) >= JUDGED
    ]
    if not behind:
        return told
    halved = [title for title, before, after in behind if after <= before / 2]
    told += " Where two seeds judge it, the gap is "
    if not halved:
        return f"{told}halved for none of them, and so for the larger part not one of recipe and length."
    return f"{told}at least halved for {join(halved)}, and there for the larger part one of recipe and length."


def _ahead(row: dict) -> str:
    """By how much main is ahead, with the seeds that say so."""
    return f"{signed(-row['difference'])} ({plural(row['common_seeds'], 'seed')})"


def rivals(study: Study) -> str:
    """Which baselines the main model's recipe brings ahead of it or leaves behind; "" before all have run."""
    rows = {title: study.row(f"{name}_full") for name, title in BASELINES.items()}
    if not all(row and row["common_seeds"] for row in rows.values()):
        return ""
    judged = {title: row for title, row in rows.items() if row["common_seeds"] >= JUDGED}
    told = {
        "ahead of it": [_apart(title, row, 1) for title, row in judged.items() if row["low"] > 0],
        "behind it": [_apart(title, row, -1) for title, row in judged.items() if row["high"] < 0],
    }
    found = [f"{join(named)} {'is' if len(named) == 1 else 'are'} {where}" for where, named in told.items() if named]
    screened = [f"{title} {signed(row['difference'])}" for title, row in rows.items() if title not in judged]
    parts = [", and ".join(found) or "none differs from it in accuracy"] if judged else []
    if screened:
        parts.append(f"with one seed, which judges nothing, {join(screened)} points")
    return f"Of the baselines by the same recipe, {'; '.join(parts)}."


def _apart(title: str, row: dict, sign: int) -> str:
    low, high = sorted((sign * row["low"], sign * row["high"]))
    seeds = plural(row["common_seeds"], "seed")
    return f"{title} ({number(sign * row['difference'], 2)} points, {number(low, 2)} to {number(high, 2)}, {seeds})"
