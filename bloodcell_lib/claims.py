"""The reference's claims against what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from bloodcell_lib import models
from bloodcell_lib.compare import Runs, by_experiment, difference
from bloodcell_lib.evaluate import bootstrap_f1, by_image, macro_f1, wilson
from bloodcell_lib.records import Record, is_demo
from bloodcell_lib.reference import CLAIMS, Claim

AGREES, DIFFERS, UNTESTED = "agrees", "does not", "cannot be tested"
LEVELS = ("best", "f1", "memory")  # kinds of claims that hold for one size and length of training
Measured = tuple[str, float, float]  # text, low, high


def claims_table(records: Sequence[Record], full: Sequence[Record] = ()) -> pd.DataFrame:
    """The reference's claims beside measurements: claim, stated, elsewhere, measured, low, high, verdict.

    full: records under `full` beside those of a study under another profile. Also unit, source and profile (which one
    was measured, "" for none); indexed by the claim's key. low and high are a 95 % interval in `unit`: for an accuracy,
    Wilson's for the mean over seeds in the images of one validation set (seeds are no further images), made wider by
    Student's t for the mean of these seeds, as independent errors add up; for a difference and for F1, the bootstrap
    over seeds and images; for memory, the range over seeds; a parameter count is exact. The rule: "agrees" if the
    stated value, within its own rounding, lies in the interval; "does not" if it lies outside; "cannot be tested" where
    no record can say, as for hidden labels or somebody else's card. Only runs on the course's images under the profiles
    `cpu` and `full` count. A level (an accuracy, an F1) is tested by `full` alone, because less size and fewer epochs
    reach less; a gain is claimed of a part, and tested at `cpu`'s size only where `full` has fewer seeds of both runs.
    Memory is told and not tested: it depends on the program.
    """
    own, large = (
        by_experiment([r for r in some if r.info["data"]["course"] and not is_demo(r.profile)])
        for some in (records, full)
    )
    rows = {}
    for claim in CLAIMS:
        runs = _runs_that_test(claim, own, large)
        measured = MEASURE[claim.kind](claim, runs) if claim.kind else None
        text, low, high = measured or ("", math.nan, math.nan)
        profile = runs[claim.experiment][0].profile if measured and claim.experiment in runs else ""
        verdict = UNTESTED
        if measured and claim.kind != "memory" and (claim.kind not in LEVELS or profile == "full"):
            inside = low - claim.rounding <= claim.value <= high + claim.rounding
            verdict = AGREES if inside else DIFFERS
        rows[claim.key] = {
            "claim": claim.claim,
            "stated": claim.stated,
            "elsewhere": claim.elsewhere,
            "measured": text,
            "low": low,
            "high": high,
            "verdict": verdict,
            "unit": claim.unit,
            "source": claim.source,
            "profile": profile,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("key")


def _best(claim: Claim, runs: Runs) -> Measured | None:
    group = runs.get(claim.experiment)
    if not group:
        return None
    values = np.array([record.accuracy("best") for record in group])
    n = group[0].info["data"]["validation"]
    mean, seeds = values.mean(), len(values)
    luck = stats.t.ppf(0.975, seeds - 1) * values.std(ddof=1) / math.sqrt(seeds) if seeds > 1 else 0.0
    low, high = wilson(mean * n, n)
    low, high = max(mean - math.hypot(mean - low, luck), 0.0), min(mean + math.hypot(high - mean, luck), 1.0)
    return _text(100 * values, "%"), 100 * low, 100 * high


def _runs_that_test(claim: Claim, own: Runs, large: Runs) -> Runs:
    """Those at the reference's size, where they have what is claimed; a gain, with no fewer seeds than the others."""
    if claim.kind == "difference":
        return large if len(_common(claim, large)) >= max(1, len(_common(claim, own))) else own
    return large if claim.kind in LEVELS and claim.experiment in large else own


def _common(claim: Claim, runs: Runs) -> set[int]:
    """The seeds of both experiments of a gain."""
    seeds = [{record.seed for record in runs.get(name, [])} for name in (claim.experiment, claim.against)]
    return seeds[0] & seeds[1]


def _gain(claim: Claim, runs: Runs) -> Measured | None:
    if claim.experiment not in runs or claim.against not in runs:
        return None
    gain = difference(by_image(runs[claim.experiment]), by_image(runs[claim.against]))
    if not gain.seeds:
        return None
    spread = "" if math.isnan(gain.std) else f" ± {gain.std:.2f}"
    return f"{gain.mean:+.2f}{spread} (n = {gain.seeds})", gain.low, gain.high


def _f1(claim: Claim, runs: Runs) -> Measured | None:
    group = runs.get(claim.experiment)
    if not group:
        return None
    values = np.array([_macro_f1(record) for record in group])
    low, high = np.quantile(bootstrap_f1(group).mean(1), [0.025, 0.975])
    return _text(values, "", 3), float(low), float(high)


def _parameters(claim: Claim, runs: Runs) -> Measured | None:
    count = models.parameters_of(claim.experiment)
    how = "its blocks as described" if claim.experiment == "as_described" else "built"
    return f"{count:,} ({how})", count, count


def _memory(claim: Claim, runs: Runs) -> Measured | None:
    # The peak depends on size and batch, and little on which card; a processor's memory is another quantity.
    group = [
        record
        for record in runs.get(claim.experiment, [])
        if "NVIDIA" in record.info["machine"]["device"]
        and record.info["config"]["pixels"] == 224
        and record.info["config"]["train"]["batch_size"] == 32
    ]
    if not group:
        return None
    values = np.array([record.info["peak_memory_bytes"] for record in group]) / 1e9
    return _text(values, "GB"), float(values.min()), float(values.max())


MEASURE: dict[str, Callable[[Claim, Runs], Measured | None]] = {
    "best": _best,
    "difference": _gain,
    "f1": _f1,
    "parameters": _parameters,
    "memory": _memory,
}


def _text(values: np.ndarray, unit: str, digits: int = 2) -> str:
    spread = "" if len(values) == 1 else f" ± {values.std(ddof=1):.{digits}f}"
    return f"{values.mean():.{digits}f}{spread}{' ' if unit else ''}{unit} (n = {len(values)})"


def _macro_f1(record: Record) -> float:
    run = record.validation()
    return macro_f1(run.labels, run.predicted)
