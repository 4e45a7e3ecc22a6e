"""Figures of what analyses found. Each takes one analysis, as `analysis.load_analyses` gives it by name.

None shows a cell but `gallery_of`, which is given its images and is for the screen of whoever has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bloodcell_lib.cells import CELL_TYPES, COLOURS, TITLES
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.style import GREY, INK, canvas, styled

Analysis = dict[str, Any]
BEFORE, AFTER = "#D55E00", "#0072B2"  # Okabe and Ito's, as in the other figures
SHORT = tuple(title.replace("Immature g", "Immature\ng") for title in TITLES)
COLOUR_OF = {cell.title: cell.colour for cell in CELL_TYPES}


@styled
def reliability(trust: Analysis) -> Figure:
    """Accuracy against confidence before and after temperature scaling, and how confident the answers are.

    Each point holds equally many images and has Wilson's interval. Raises BloodcellError for an analysis that is older
    than its histogram.
    """
    judged = trust["result"]["plain"]
    if "histogram" not in judged["before"]:
        raise BloodcellError("This analysis has no histogram: make it anew with `bloodcell trust --only trust`.")
    note = f"{_note(trust)}; bars and brackets: 95 % intervals"
    figure, axes = canvas(2.9, note, nrows=2, ncols=2, sharex="col", sharey="row", height_ratios=(3, 1))
    temperature = np.mean(judged["temperatures"])
    titles = {"before": "as trained", "after": f"after temperature scaling (mean {temperature:.2f})"}
    edge = 10 * np.floor(
        10 * min(min(judged[key]["bins"]["confidence"] + judged[key]["bins"]["low"]) for key in titles)
    )
    for (key, title), colour, top, bottom in zip(titles.items(), (BEFORE, AFTER), *axes):
        table = pd.DataFrame(judged[key]["bins"])
        x, y = 100 * table["confidence"], 100 * table["accuracy"]
        top.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, dashes=(4, 2))
        bars = np.maximum(0, [y - 100 * table["low"], 100 * table["high"] - y])
        top.errorbar(x, y, bars, fmt="o", color=colour, elinewidth=1, markersize=4)
        low, high = judged[key]["ece_mass_interval"]
        words = f"calibration error {100 * judged[key]['ece_mass']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        top.set_title(f"{title}\n{words}", color=colour)
        top.set(xlim=(edge, 101.5), ylim=(edge, 102))
        counts = np.array(judged[key]["histogram"])
        width = 100 / len(counts)
        at, share = width * np.arange(len(counts)), 100 * counts / counts.sum()
        bottom.bar(at, share, 0.9 * width, align="edge", color=colour, linewidth=0)
        bottom.set(xlabel="confidence (%)")
    axes[0, 0].set(ylabel="accuracy (%)")
    axes[1, 0].set(ylabel="images (%)")
    return figure


@styled
def abstaining(trust: Analysis) -> Figure:
    """Accuracy on the surest share of the cells, with its interval, and what is kept where a rate is asked for."""
    judged = trust["result"]["plain"]
    table = pd.DataFrame(judged["coverage"])
    table = table[table["n"] >= 20]  # a handful of images tells nothing
    if table.empty:
        raise BloodcellError("Too few images to leave any out: analyse a run on more.")
    figure, ((ax,),) = canvas(2.6, _note(trust) + "; 95 % intervals")
    x = 100 * table["coverage"]
    ax.plot(x, 100 * table["accuracy"], color=INK)
    ax.fill_between(x, 100 * table["low"], 100 * table["high"], color=GREY, alpha=0.2, linewidth=0)
    for (wanted, found), colour, marker in zip(judged["abstention"].items(), (AFTER, BEFORE), "os"):
        name = f"{100 * float(wanted):g} % asked for"
        if not found["kept"]:
            ax.plot([], [], marker, color=colour, markerfacecolor="none", label=f"{name}: not reached")
            continue
        y, low, high = (100 * found[key] for key in ("accuracy", "low", "high"))
        bars = [[max(0, y - low)], [max(0, high - y)]]
        words = f"{name}: {100 * found['coverage']:.1f} % kept, {found['wrong']} of {found['kept']:,} wrong"
        ax.errorbar([100 * found["coverage"]], [y], bars, fmt=marker, color=colour, capsize=2, label=words)
        ax.axhline(100 * float(wanted), color=colour, linewidth=0.7, dashes=(4, 2))
    ax.set(xlim=(0, 101), xlabel="cells kept, the surest first (%)", ylabel="accuracy on them (%)")
    ax.set_ylim(max(0, 100 * table["low"].min() - 1), 100.4)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, borderaxespad=0.1)
    return figure


@styled
def prediction_sets(trust: Analysis) -> Figure:
    """How often prediction sets hold the true class, against what was asked for, and how large they are."""
    result = trust["result"]
    figure, (axes,) = canvas(2.1, _note(trust) + "; 95 % intervals", ncols=2, width_ratios=(3, 2))
    levels = list(result["plain"]["sets"])
    kinds = (("plain", "one picture", BEFORE, -0.08), ("tta", "eight symmetries", AFTER, 0.08))
    for kind, words, colour, shift in kinds:
        rows = [result[kind]["sets"][level] for level in levels]
        at = np.arange(len(levels)) + shift
        y, low, high, worst = (
            100 * np.array([row[key] for row in rows]) for key in ("coverage", "low", "high", "worst_class")
        )
        axes[0].errorbar(at, y, np.maximum(0, [y - low, high - y]), fmt="o", color=colour, label=words)
        axes[0].plot(at, worst, "v", color=colour, markerfacecolor="none", markersize=4)
        axes[1].plot(at, [row["size"] for row in rows], "o", color=colour)
        for place, row in zip(at, rows):
            side = {"ha": "right" if shift < 0 else "left", "va": "center", "size": 8}
            axes[1].annotate(f"{row['size']:.2f}", (place, row["size"]), (6 * np.sign(shift), 0), **side, **POINTS)
    for i, level in enumerate(levels):
        axes[0].plot([i - 0.35, i + 0.35], [100 * float(level)] * 2, color=INK, linewidth=0.8, dashes=(4, 2))
    ticks = {"xticks": range(len(levels)), "xticklabels": [f"{100 * float(level):g} %" for level in levels]}
    axes[0].plot([], [], "v", color=GREY, markerfacecolor="none", label="worst class")
    axes[0].plot([], [], color=INK, linewidth=0.8, dashes=(4, 2), label="asked for")
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
    axes[0].set(**ticks, xlim=(-0.5, len(levels) - 0.5), xlabel="asked for", ylabel="sets with the true class (%)")
    axes[1].set(**ticks, xlim=(-0.6, len(levels) - 0.4), xlabel="asked for", ylabel="mean classes in a set")
    axes[1].margins(y=0.3)
    for ax in axes:
        ax.grid(False, axis="x")
    return figure


POINTS = {"textcoords": "offset points"}


@styled
def feature_map(mistakes: Analysis) -> Figure:
    """Where the network puts cells: t-SNE of its last features, a colour a class, mistakes ringed in the colour of
    the class that they were called."""
    found = mistakes["result"]["map"]
    frame = pd.DataFrame({key: found[key] for key in ("label", "called", "x", "y")})
    wrong = frame[frame["label"] != frame["called"]]
    words = f"{found['run']}, {found['images']:,} validation images, perplexity {found['perplexity']:.0f}"
    figure, ((ax,),) = canvas(3.6, f"{words}; ringed: {len(wrong)} mistakes")
    ax.scatter(frame["x"], frame["y"], 9, [COLOURS[k] for k in frame["label"]], linewidth=0, alpha=0.8)
    for width, colour in ((2.2, ["w"] * len(wrong)), (1.2, [COLOURS[k] for k in wrong["called"]])):
        ax.scatter(wrong["x"], wrong["y"], 42, "none", edgecolors=colour, linewidth=width)
    ax.scatter(wrong["x"], wrong["y"], 9, [COLOURS[k] for k in wrong["label"]], linewidth=0)  # over other cells' rings
    marks = [Line2D([], [], marker="o", linestyle="", color=c, label=t) for t, c in zip(TITLES, COLOURS)]
    ring = {"marker": "o", "linestyle": "", "color": INK, "markerfacecolor": "none", "markersize": 7}
    marks.append(Line2D([], [], **ring, label="mistake, in the\ncolour of its answer"))
    ax.legend(handles=marks, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.3, labelspacing=0.7)
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    return figure


@styled
def finer_recall(mistakes: Analysis) -> Figure:
    """Recall of each finer type, and of the classes without any, with 95 % intervals; what the mistakes were called."""
    rows = mistakes["result"]["finer"]
    figure, ((ax,),) = canvas(0.19 * len(rows) + 0.5, _note(mistakes) + "; 95 % intervals; the likeliest mistake")
    labels = []
    for y, row in enumerate(rows):
        colour = COLOUR_OF[row["class"]]
        ax.plot(
            [100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=4, alpha=0.5, solid_capstyle="butt"
        )
        ax.plot(100 * row["recall"], y, "o", color=colour, markeredgecolor=INK, markeredgewidth=0.5)
        most = list(row["called"].items())[:1]
        called = "; ".join(f"{n} as {title.lower()}" for title, n in most)
        words = f"{100 * row['recall']:.1f} %  of {row['images']}{'   ' + called if called else ''}"
        ax.text(1.02, y, words, transform=ax.get_yaxis_transform(), va="center", size=8)
        labels.append(row["finer"].capitalize() or f"{row['class']}, untold")
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel="recall (%)")
    ax.set_yticks(range(len(rows)), labels)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    return figure


@styled
def label_noise(labels: Analysis) -> Figure:
    """The estimated share of each true class that bears another label, in %; beside it the suspects of each class."""
    result = labels["result"]
    channel = 100 * np.array(result["noise"], dtype=float)
    off = np.where(np.eye(8, dtype=bool), 0, channel)
    figure, (axes,) = canvas(
        3.2, _note(labels) + "; left: % of the true class; right: share and number", ncols=2, width_ratios=(3, 1.1)
    )
    left, right = axes
    left.pcolormesh(off, cmap="Reds", norm=PowerNorm(0.5, 0, max(2.0, 1.6 * off.max())), edgecolors="w", linewidth=1)
    for i, j in zip(*np.nonzero(channel >= 0.05)):
        dark = off[i, j] > 0.5 * off.max()
        look = {"size": 7.5, "color": "#AAAAAA"} if i == j else {"size": 8, "color": "w" if dark else INK}
        left.text(j + 0.5, i + 0.5, f"{channel[i, j]:.1f}", ha="center", va="center", **look)
    at = np.arange(8) + 0.5
    left.set_xticks(at, SHORT, rotation=35, ha="right", rotation_mode="anchor", linespacing=0.9)
    left.set_yticks(at, SHORT, linespacing=0.9)
    left.set(xlabel="true class, estimated", ylabel="label given", ylim=(8, 0))
    left.tick_params(length=0)
    left.grid(False)
    for y, row in zip(at, result["by_class"]):
        colour = COLOUR_OF[row["class"]]
        right.plot(
            [100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=4, alpha=0.5, solid_capstyle="butt"
        )
        right.plot(100 * row["share"], y, "o", color=colour, markeredgecolor=INK, markeredgewidth=0.5)
        right.text(1.03, y, row["suspected"], transform=right.get_yaxis_transform(), va="center", size=8)
    right.set(ylim=(8, 0), yticks=[], xlabel="suspected labels (%)")
    right.set_xlim(left=0)
    return figure


@styled
def gallery_of(cells: CellImages, listed: Sequence[dict[str, Any]]) -> Figure:
    """The cells named in `listed`, such as an analysis's surest mistakes, with what they are and were called.

    For the screen only: no figure file may show a real cell. Raises BloodcellError where no named image is at hand.
    """
    where = {(name, TITLES[label]): i for i, (name, label) in enumerate(zip(cells.names, cells.labels.tolist()))}
    shown = [row for row in listed if (row["name"], row["label"]) in where]
    if not shown:
        raise BloodcellError("None of these images is at hand: give the images that were analysed.")
    columns = 6
    rows = -(-len(shown) // columns)
    note = f"Label, then the answer and its confidence; pictures: {cells.source}"
    figure, axes = canvas(1.32 * rows, note, nrows=rows, ncols=columns)
    for ax in axes.flat:
        ax.axis("off")
    for ax, row in zip(axes.flat, shown):
        ax.imshow(cells.images[where[row["name"], row["label"]]].permute(1, 2, 0).numpy())
        label, called = (row[key].replace("Immature granulocyte", "Immature gran.") for key in ("label", "called"))
        second = f"{called}, {row['confidence']:.0%}" if called != label else f"right, {row['confidence']:.0%}"
        ax.set_title(f"{label}\n{second}", size=6.5, linespacing=1.0, pad=2)
    return figure


# Figures that need nothing but their analysis: name of the file, of the analysis, function.
FIGURES: dict[str, tuple[str, Callable[[Analysis], Figure]]] = {
    "reliability": ("trust", reliability),
    "abstaining": ("trust", abstaining),
    "prediction_sets": ("trust", prediction_sets),
    "finer_recall": ("mistakes", finer_recall),
    "feature_map": ("mistakes", feature_map),
    "label_noise": ("labels", label_noise),
}


def _note(analysis: Analysis) -> str:
    result = analysis["result"]
    folds = len(result["runs"])
    who = f"{folds} folds" if folds > 1 else result["runs"][0]
    return f"profile {analysis['profile']}, {who}, {result['images']:,} images out of sample"
