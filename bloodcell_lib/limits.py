"""Figures of where the networks fail: corrupted pictures, other sites, cells that they never saw.

Each takes the `result` of an analysis as its file keeps it, and draws no cell, but for a sheet of the corruptions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bloodcell_lib.cells import CLASS_MAP, COLOURS, TITLES
from bloodcell_lib.compare import title_of
from bloodcell_lib.corrupt import CORRUPTIONS, corrupt
from bloodcell_lib.explain import drawn
from bloodcell_lib.robustness import rivals
from bloodcell_lib.style import GREY, INK, WIDTH, canvas, styled
from bloodcell_lib.travel import titles
from bloodcell_lib.unknown import SCORES

# Okabe and Ito's colours, told apart by colour-blind readers; dashes and markers say the same again.
LOOKS = {
    "main": ("main", GREY, "o", (2, 1)),
    "resnet18": ("ResNet-18", "#E69F00", "s", (4, 1.5)),
    "resnet18_full": ("ResNet-18, main recipe", "#E69F00", "s", (4, 1.5)),
    "group_norm": ("group norm", "#0072B2", "^", (1, 0)),
    "stain_jitter": ("stain jitter", "#CC79A7", "v", (1, 0)),
    "grey_world": ("grey world", "#009E73", "D", (1, 0)),
    "white_point": ("white point", "#56B4E9", "<", (1, 0)),
    "white_and_stain": ("white point, stain jitter", "#0072B2", "*", (3, 1)),
    "best_white_point": ("with a white point", "#56B4E9", "<", (1, 0)),
    "best_remedies": ("with all remedies", "#D55E00", ">", (1, 0)),
    "all_remedies": ("all remedies", "#D55E00", ">", (1, 0)),
    "best": ("best recipe", "#D55E00", "P", (1, 0)),
}
SCORE_LOOKS = {"max_softmax": ("o", "#D55E00"), "energy": ("s", "#0072B2"), "mahalanobis": ("^", "#009E73")}
ODD_TITLES = {"background": "Background", "blank": "Blank field", "noise": "Noise", "artefacts": "Artefacts"}


@styled
def corruption_sheet() -> Figure:
    """A drawn neutrophil under every corruption: a column each, a row for each severity."""
    image, severities = drawn(224, 240)[CLASS_MAP["neutrophil"]], (1, 3, 5)
    side = (WIDTH - 0.35) / len(CORRUPTIONS)
    figure, axes = canvas(
        len(severities) * side + 0.3, "a drawn cell; rows: severity", nrows=len(severities), ncols=len(CORRUPTIONS)
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for column, (name, row) in zip(axes.T, CORRUPTIONS.items()):
        for ax, severity in zip(column, severities):
            # Where a picture may change either way, the same draw for all: the second of two images.
            ax.imshow(corrupt(image.expand(2, -1, -1, -1), name, severity)[1].permute(1, 2, 0).numpy())
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        column[0].set_title(row.title, size=6)
    for ax, severity in zip(axes[:, 0], severities):
        ax.set_ylabel(severity, rotation=0, ha="right", va="center")
    return figure


@styled
def corruption_curves(result: dict[str, Any]) -> Figure:
    """Accuracy against severity, a panel for each corruption; the band is the first experiment's interval."""
    severities, first = result["severities"], result["experiments"][result["experiment"]]
    figure, axes = canvas(3.3, _note(result), nrows=2, ncols=5, sharex=True, sharey=True)
    x = [0, *severities]
    for ax, (name, row) in zip(axes.flat, result["corruptions"].items()):
        band = np.array([[step["low"], step["high"]] for step in (first["clean"], *first["corrupted"][name])])
        ax.fill_between(x, *100 * band.T, color=INK, alpha=0.15, linewidth=0)
        shown = (result["experiment"], result["baseline"], *rivals(result["experiment"]))
        for experiment, found in ((name, row) for name, row in result["experiments"].items() if name in shown):
            own = experiment == result["experiment"]
            words, colour, marker, dash = (experiment, INK, "o", (1, 0)) if own else LOOKS[experiment]
            y = [100 * step["accuracy"] for step in (found["clean"], *found["corrupted"][name])]
            look = {"color": colour, "marker": marker, "dashes": dash, "markersize": 2.5, "linewidth": 1}
            ax.plot(x, y, **look, zorder=4 if own else 3, label=words)
        ax.set_title(row["title"])
        ax.set(xticks=x, ylim=(0, 101))
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy (%)")
    for ax in axes[-1]:
        ax.set_xlabel("severity")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


@styled
def travel_sites(result: dict[str, Any]) -> Figure:
    """Accuracy at each simulated site, of the experiment with its interval and of the best other one by its mean."""
    found, name = result["experiments"], result["experiment"]
    rivals = [other for other in found if other != name]
    best = max(rivals, key=lambda other: found[other]["sites"]["all"]["accuracy"], default=None)
    return _sites(result, found[name], title_of(name), found[best] if best else None, title_of(best) if best else "")


@styled
def reading_sites(result: dict[str, Any]) -> Figure:
    """Accuracy at each simulated site where what was read of the photographs is undone, and where it is not."""
    plain, undone = (result["experiments"][kind] for kind in ("plain", "undone"))
    return _sites(result, undone, "what was read is undone", plain, title_of(result["experiment"]))


def _sites(
    result: dict[str, Any], own: dict[str, Any], title: str, other: dict[str, Any] | None, other_title: str
) -> Figure:
    """One network's accuracy at each site with its interval, and another's."""
    rows = {"clean": "As it is", **titles(result)}
    values, y = {"clean": own["clean"], **own["sites"]}, range(len(rows))
    note = f"{result['images']} validation images, {own['seeds']} seed{'s' * (own['seeds'] > 1)}; bars: 95 % interval"
    figure, ((ax,),) = canvas(0.6 + 0.2 * len(rows), note)
    if other:
        x = [100 * {"clean": other["clean"], **other["sites"]}[key]["accuracy"] for key in rows]
        ax.plot(x, y, "D", color="#0072B2", markerfacecolor="white", markersize=4.5, label=other_title)
    for i, key in enumerate(rows):
        ax.plot([100 * values[key]["low"], 100 * values[key]["high"]], [i, i], color=INK, linewidth=2, alpha=0.4)
    x = [100 * values[key]["accuracy"] for key in rows]
    ax.plot(x, y, "o", color=INK, markersize=4.5, label=title)
    ax.axvline(100 * result["goals"]["alone"] * own["clean"]["accuracy"], color=GREY, linewidth=0.8, dashes=(3, 2))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
    ax.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), yticks=y)
    goal = f"dashed: {100 * result['goals']['alone']:g} in a hundred of what it has as it is"
    ax.set_xlabel(f"accuracy (%); {goal}")
    ax.set_yticklabels(list(rows.values()))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    return figure


def _note(result: dict[str, Any]) -> str:
    seeds = result["experiments"][result["experiment"]]["seeds"]
    return f"{result['images']} validation images, {seeds} seed{'s' * (seeds > 1)}; 0: as they are; band: 95 % interval"


@styled
def unknown_scores(result: dict[str, Any]) -> Figure:
    """How well three scores tell the unknown from the known: AUROC and FPR95 with intervals, a row for each unknown."""
    rows = [(TITLES[CLASS_MAP[name]], found) for name, found in result["left_out"].items()]
    gap = len(rows)
    rows += [(ODD_TITLES[name], found) for name, found in result["main"].items()]
    at = np.arange(len(rows)) + 0.5 * (np.arange(len(rows)) >= gap) * (gap > 0)
    few = ", ".join(result["missing"]) if len(result["missing"]) < 4 else f"{len(result['missing'])} of the classes"
    absent = f"; no network without {few}" if result["missing"] else ""
    figure, (axes,) = canvas(0.75 + 0.24 * (at[-1] + 1), f"bars: 95 % bootstrap interval{absent}", ncols=2, sharey=True)
    for ax, measure, words in zip(axes, ("auroc", "fpr95"), ("AUROC (more is better)", "FPR95 (less is better)")):
        for k, name in enumerate(SCORES):
            marker, colour = SCORE_LOOKS[name]
            y = at + 0.24 * (k - 1)
            value, low, high = (
                np.array([found["scores"][name][key] for _, found in rows])
                for key in (measure, f"{measure}_low", f"{measure}_high")
            )
            ax.hlines(y, low, high, color=colour, linewidth=1.6, alpha=0.5)
            ax.plot(value, y, marker, color=colour, markersize=3.5, label=SCORES[name], clip_on=False)
        ax.set(xlim=(0, 1), ylim=(at[-1] + 0.6, -0.6), xlabel=words, yticks=at)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        if gap:
            ax.axhline(gap - 0.25, color=GREY, linewidth=0.5)
    axes[0].axvline(0.5, color=GREY, linewidth=0.8, dashes=(3, 2))  # what a coin would reach
    axes[0].set_yticklabels([title for title, _ in rows])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def site_fall(result: dict[str, Any], source: str) -> Figure:
    """Recall of each class in validation and at another site, each with its interval, and of all of them together."""
    rows = [*((TITLES[CLASS_MAP[n]], COLOURS[CLASS_MAP[n]], f) for n, f in result["classes"].items())]
    rows.append(("All", INK, result))
    seeds = f"{result['seeds']} seed{'s' * (result['seeds'] > 1)}"
    how = ", normalised" * result.get("normalised", False)
    note = f"{source}: {result['images']} images{how}, {seeds}; bars: 95 % interval; right: change in points"
    figure, ((ax,),) = canvas(0.75 + 0.26 * len(rows), note)
    for i, (_, colour, found) in enumerate(rows):
        for shift, step, fill in ((-0.15, found["validation"], "white"), (0.15, found["accuracy"], colour)):
            if step is None:
                continue
            ax.plot([100 * step["low"], 100 * step["high"]], [i + shift] * 2, color=colour, linewidth=2, alpha=0.5)
            ax.plot(100 * step["accuracy"], i + shift, "o", color=colour, markerfacecolor=fill, clip_on=False)
        if fall := found["fall"]:
            words = f"{fall['points']:+.0f}  [{fall['low']:+.0f}, {fall['high']:+.0f}]".replace("-", "−")
            ax.text(1.03, i, words, transform=ax.get_yaxis_transform(), va="center", size=8)
    for fill, words in (("white", "validation"), (GREY, "the other site")):
        ax.plot([], [], "o", color=GREY, markerfacecolor=fill, label=words)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
    ax.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)), xlabel="recall (%)")
    ax.set_yticklabels([title for title, *_ in rows])
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    return figure


# Figures that need nothing but their analysis: name of the file, of the analysis, function of the whole analysis.
FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {
    "corruption_curves": ("robustness", lambda content: corruption_curves(content["result"])),
    "corruption_sheet": ("robustness", lambda _: corruption_sheet()),
    "travel_sites": ("travel", lambda content: travel_sites(content["result"])),
    "reading_sites": ("reading", lambda content: reading_sites(content["result"])),
    "unknown_scores": ("unknown", lambda content: unknown_scores(content["result"])),
}
