"""Forest plots: differences between experiments with their intervals, one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from bloodcell_lib.compare import FURTHER, title_of
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.plans import BASES, TRIED
from bloodcell_lib.reference import CLAIMS
from bloodcell_lib.style import GREY, INK, WIDTH, canvas, styled

# Okabe and Ito's colours and some of Tol's, told apart by colour-blind readers; one colour a group everywhere.
GROUP_COLOURS = {
    "main": INK,
    "baseline": "#E69F00",
    "attention": "#0072B2",
    "regularisation": "#009E73",
    "schedule": "#D55E00",
    "augmentation": "#AA3377",
    "extra": GREY,
    "cv": GREY,
    "labels": "#0072B2",
    "robustness": "#009E73",
    "speed": "#D55E00",
    "lever": "#AA3377",
    "best": INK,
    "confirmed": "#0072B2",
    "stage": "#009E73",
    "ablation": "#E69F00",
    "part": "#E69F00",
    "distilled": "#AA3377",
}
CLAIM_MARK = {"marker": "D", "linestyle": "", "color": INK, "markerfacecolor": "none", "markeredgewidth": 0.9}
ABLATED = ("attention", "regularisation", "schedule", "augmentation")


@styled
def ablations(table: pd.DataFrame) -> Figure:
    """Difference of each ablation to the main model, with 95 % intervals; hollow: what the reference claims.

    table: of `compare.study_table`. Raises BloodcellError if it compares no ablation.
    """
    groups = [_compared(table[table["group"] == group]) for group in ABLATED]
    groups.append(_compared(table[table.index == "as_described"]))
    if all(rows.empty for rows in groups):
        raise BloodcellError("No ablation shares seeds and images with the main experiment: run both first.")
    claims = {
        claim.against: -claim.value for claim in CLAIMS if claim.kind == "difference" and claim.experiment == "main"
    }
    return _forest(groups, "difference to the main model (points)", claims, narrow=True)


@styled
def beyond(table: pd.DataFrame) -> Figure:
    """The same of each row that the reference's study does not have, but for those of `parts`.

    table: of `compare.study_table`. Raises BloodcellError if it compares no such row.
    """
    drawn = set(_compared(table)["group"])
    others = [f"{group}: to {title_of(BASES[group]).lower()}" for group in FURTHER if group in BASES and group in drawn]
    return _further(table, FURTHER, "the main model", "\n" + fill(f"({'; '.join(others)})", 90) if others else "")


@styled
def parts(table: pd.DataFrame) -> Figure:
    """The same of each row that changes one thing in the best recipe, all of them short.

    table: of `compare.study_table`. Raises BloodcellError if it compares no such row.
    """
    return _further(table, TRIED, f"the {title_of(BASES[TRIED[0]]).lower()}")


def _further(table: pd.DataFrame, names: Sequence[str], base: str, others: str = "") -> Figure:
    groups = [_compared(table[table["group"] == group]).sort_values("difference") for group in names]
    if all(rows.empty for rows in groups):
        wanted = ",".join(dict.fromkeys([*(BASES[name] for name in names if name in BASES), *names]))
        raise BloodcellError(
            f"Nothing beyond the reference's study shares seeds and images with what it changes: `bloodcell study "
            f"--experiments {wanted}` makes what this figure shows."
        )
    return _forest(groups, f"difference to {base}, points of accuracy{others}")


def _compared(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["difference"].notna()]


def _forest(
    groups: Sequence[pd.DataFrame], label: str, claims: Mapping[str, float] | None = None, narrow: bool = False
) -> Figure:
    """A line a row, the groups a little apart, the numbers at the right; claims: by experiment, in points.

    narrow: to stand beside `training_curves` in the report.
    """
    claims = claims or {}
    chosen = pd.concat([rows for rows in groups if len(rows)])
    lines: list[tuple[float, pd.Series]] = []  # how far down, and the row
    for rows in groups:
        below = lines[-1][0] + 1.4 if lines else 0.0
        lines += [(below + k, row) for k, (_, row) in enumerate(rows.iterrows())]
    last = lines[-1][0]
    note, width, size = table_note(chosen, "common_seeds"), 3.25 if narrow else WIDTH, 7 if narrow else 8
    figure, ((ax,),) = canvas((0.136 if narrow else 0.17) * last + 0.85, note.split(";")[0] if narrow else note, width)
    for y, row in lines:
        colour = GROUP_COLOURS[row["group"]]
        ax.plot([row["low"], row["high"]], [y, y], color=colour, solid_capstyle="butt", linewidth=1.5)
        ax.plot(row["difference"], y, "o", color=colour)
        if row.name in claims and row["course"]:
            ax.plot(claims[row.name], y, **CLAIM_MARK)
        words = f"{row['difference']:+.2f}  [{row['low']:+.2f}, {row['high']:+.2f}]".replace("-", "−")
        ax.text(1.02, y, words, transform=ax.get_yaxis_transform(), va="center", size=size)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set(ylim=(last + 0.6, -0.6), xlabel=label)
    ax.set_yticks([y for y, _ in lines], [row["title"] for _, row in lines])
    for name, (_, row) in zip(ax.get_yticklabels(), lines):
        name.set(color=GROUP_COLOURS[row["group"]], size=size)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.plot([], [], "o-", color=GREY, label="measured, 95 % interval")
    if chosen.loc[[name for name in chosen.index if name in claims], "course"].any():
        ax.plot([], [], **CLAIM_MARK, label="the reference's claim")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1 if narrow else 2, borderaxespad=0.1, fontsize=size)
    return figure


def table_note(table: pd.DataFrame, column: str = "seeds") -> str:
    """Under which profile, and over how many seeds a point, for a figure's foot."""
    profiles = ", ".join(dict.fromkeys(table["profile"]))
    low, high = table[column].min(), table[column].max()
    seeds = f"{low}" if low == high else f"{low} to {high}"
    return f"profile {profiles}, {seeds} seed{'s' if high > 1 else ''} a point; 95 % intervals over seeds and images"
