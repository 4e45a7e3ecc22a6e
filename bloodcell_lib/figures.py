"""Figures at the report's column width: one style, one way to save, one function a figure, data in and Figure out."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bloodcell_lib import evaluate, evidence, explained, limits, paths
from bloodcell_lib.cells import COLOURS, TITLES
from bloodcell_lib.compare import FURTHER, study_table
from bloodcell_lib.data import CellImages
from bloodcell_lib.diagram import draw_network
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.forest import CLAIM_MARK, GROUP_COLOURS, ablations, beyond, parts, table_note
from bloodcell_lib.gallery import class_distribution, manifest_cells, sample_sheet, synthetic_cells
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.plans import PROFILES, TRIED
from bloodcell_lib.records import Record
from bloodcell_lib.reference import CLAIMS
from bloodcell_lib.style import FOOT, GREY, INK, WIDTH, Page, canvas, save, styled
from bloodcell_lib.style import style as style  # offered here too: the one context for a figure of one's own

TRAIN, VALIDATION = "#D55E00", "#0072B2"
BEHIND = {"facecolor": "w", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # of words that lines would strike out


@styled
def architecture(config: ModelConfig, pixels: int) -> Figure:
    """The MBConv network of `config` at `pixels` x `pixels`, and one of its blocks, drawn from the model itself."""
    figure = Page((WIDTH, 3.4 + FOOT))
    draw_network(figure, config, pixels, FOOT)
    return figure


@styled
def training_curves(records: Sequence[Record], narrow: bool = False) -> Figure:
    """Loss and accuracy by epoch of one experiment (main, if it is there): mean over seeds, band from low to high.

    narrow: one below the other, to stand beside `ablations` in the report.
    """
    group = evaluate.leading(records)
    title = group[0].info["title"]
    band = "; band: lowest to highest seed" if len(group) > 1 else ""
    if narrow:
        figure, grid = canvas(2.5, _note(group), width=2.15, nrows=2)
    else:
        figure, grid = canvas(1.95, f"{title}, {_note(group)}{band}", ncols=2)
    axes = grid.ravel()
    epochs = min(len(record.info["history"]) for record in group)
    x = np.arange(1, epochs + 1)
    for ax, what, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
        for part, colour, dash in (("train", TRAIN, (4, 1.5)), ("validation", VALIDATION, (1, 0))):
            rows = [[row[f"{part}_{what}"] for row in record.info["history"][:epochs]] for record in group]
            y = scale * np.array([row for row in rows if None not in row], dtype=float)
            if not len(y):
                continue
            look = {"color": colour, "dashes": dash, "marker": "o" if epochs < 3 else None}
            ax.plot(x, y.mean(0), **look, label="training" if part == "train" else part)
            ax.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.25, linewidth=0)
            if part == "validation" and what == "accuracy":
                last = y.mean(0)[-1]
                look = {"textcoords": "offset points", "ha": "right", "size": 8}
                ax.annotate(f"{last:.1f} %", (epochs, last), (0, -14), bbox=BEHIND, zorder=5, **look)
        ax.set(xlabel="epoch", ylabel="accuracy (%)" if what == "accuracy" else "loss")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if epochs < 3:
            ax.set(xlim=(0.5, epochs + 0.5), xticks=x)
            ax.margins(y=0.3)
    axes[0].legend(loc="upper right")
    return figure


@styled
def model_comparison(table: pd.DataFrame) -> Figure:
    """Accuracy with its interval against parameters; open: the reference's budget, filled: the main model's recipe.

    table: of `compare.study_table`. Raises BloodcellError if it holds none of these models.
    """
    names = [name for name in table.index if table["group"][name] == "baseline" or name in ("main", "as_described")]
    names += [name for name in table.index if name.endswith("_full") and name.removesuffix("_full") not in names]
    if not names:
        raise BloodcellError("No model to compare: run the main experiment or a baseline first.")
    figure, ((ax,),) = canvas(2.9, table_note(table.loc[names]))
    claims = {claim.experiment: claim.value for claim in CLAIMS if claim.kind == "best"}
    sizes = table.loc[names, "parameters"].astype(float)
    for name in names:
        small = table["group"][name] == "baseline"
        both = [(name, small)] + ([(f"{name}_full", False)] if f"{name}_full" in table.index else [])
        colour = GROUP_COLOURS["baseline" if name not in ("main", "as_described") else table["group"][name]]
        points, lowest = [], 100.0
        for key, hollow in both:
            x = sizes[name] * (1 if len(both) == 1 else 0.96 if hollow else 1.04)  # side by side
            y, low, high = 100 * table.loc[key, ["mean", "mean_low", "mean_high"]].astype(float)
            ax.plot([x, x], [low, high], color=colour, linewidth=1)
            ax.plot(x, y, "o", color=colour, markerfacecolor="w" if hollow else colour, markersize=5.5)
            points.append((x, y))
            lowest = np.nanmin([lowest, y, low])
        ax.plot(*zip(*points), color=INK, linewidth=0.7, linestyle=":", zorder=1)
        if name in claims and table["course"][name]:
            ax.plot(points[0][0], claims[name], **CLAIM_MARK)
            lowest = min(lowest, claims[name])
        # The name goes below; where another model is near, away from it.
        ratio = sizes.drop(name) / sizes[name]
        side = "right" if ratio.between(1, 2.2).any() else "left" if ratio.between(1 / 2.2, 1).any() else "center"
        shift = {"right": 6, "left": -6, "center": 0}[side]
        title = table["title"][name].removesuffix(", main recipe").replace(" as ", " as\n")
        look = {"textcoords": "offset points", "ha": side, "va": "top", "size": 8.5, "linespacing": 0.95}
        ax.annotate(title, (points[0][0], lowest), (shift, -6), **look)
    ax.set(xscale="log", xlabel="parameters", ylabel="validation accuracy (%)")
    ax.set_xticks([1e5, 3e5, 1e6, 3e6, 1e7, 3e7])
    ax.minorticks_off()
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e6:g} M"))
    ax.set(xlim=(sizes.min() / 2.2, sizes.max() * 1.6))
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.12 * (high - low), high)  # room for the lowest name
    if (table.loc[names, "group"] == "baseline").any():
        ax.plot([], [], "o", color=GREY, markerfacecolor="w", label="the reference's budget")
    ax.plot([], [], "o", color=GREY, label="the main model's recipe")
    if table.loc[[name for name in names if name in claims], "course"].any():
        ax.plot([], [], **CLAIM_MARK, label="the reference's claim")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)
    return figure


@styled
def confusion_matrix(records: Sequence[Record]) -> Figure:
    """Counts and row shares, all seeds pooled, of one experiment (main, if it is there).

    Narrow, so that the scores by class stand beside it in the report.
    """
    group = evaluate.leading(evaluate.validated(records))
    pooled = evaluate.pool(group)
    matrix = evaluate.confusion(pooled.labels, pooled.predicted)
    share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    figure, ((ax,),) = canvas(2.9, f"{_note(group)}; %: of the row", width=3.3)
    ax.pcolormesh(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), edgecolors="w", linewidth=1)
    for i, j in itertools.product(range(8), range(8)):
        look = {"ha": "center", "color": "w" if share[i, j] > 0.4 else INK}
        if matrix[i, j]:
            ax.text(j + 0.5, i + 0.53, f"{matrix[i, j]:,}", va="bottom", size=7.5, **look)
            ax.text(j + 0.5, i + 0.56, f"{100 * share[i, j]:.1f} %", va="top", size=5.5, **look)
        else:
            ax.text(j + 0.5, i + 0.5, "0", va="center", size=7, ha="center", color="#AAAAAA")
    words = [title.replace("Immature g", "Immature\ng") for title in TITLES]
    ax.set_xticks(np.arange(8) + 0.5, TITLES, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(np.arange(8) + 0.5, words, linespacing=0.9)
    ax.set(ylim=(8, 0), xlabel="predicted", ylabel="label")
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return figure


@styled
def per_class_f1(records: Sequence[Record]) -> Figure:
    """F1 of each class with its bootstrap interval over seeds and images, precision and recall beside it."""
    group = evaluate.leading(evaluate.validated(records))
    pooled = evaluate.pool(group)
    table = evaluate.per_class(pooled.labels, pooled.predicted)
    low, high = np.quantile(evaluate.bootstrap_f1(group), [0.025, 0.975], axis=0)
    figure, ((ax,),) = canvas(2.5, f"{group[0].info['title']}, {_note(group)}, pooled; bars: 95 % bootstrap interval")
    for i, row in enumerate(table.itertuples()):
        ax.plot([low[i], high[i]], [i, i], color=COLOURS[i], linewidth=4, alpha=0.55, solid_capstyle="butt")
        ax.plot(row.precision, i, ">", color=INK, markersize=4, markerfacecolor="none", markeredgewidth=0.8, zorder=3)
        ax.plot(row.recall, i, "<", color=INK, markersize=4, markerfacecolor="none", markeredgewidth=0.8, zorder=3)
        ax.plot(row.f1, i, "o", color=COLOURS[i], markersize=5.5, markeredgecolor=INK, markeredgewidth=0.5)
        words = f"{row.f1:.3f}  [{low[i]:.3f}, {high[i]:.3f}]"
        ax.text(1.02, i, words, transform=ax.get_yaxis_transform(), va="center", size=8)
    for marker, words in (("o", "F1"), (">", "precision"), ("<", "recall")):
        fill = GREY if marker == "o" else "none"
        ax.plot([], [], marker, color=GREY if marker == "o" else INK, markerfacecolor=fill, label=words)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)
    ax.set(ylim=(7.6, -0.6), yticks=range(8), yticklabels=TITLES, xlabel="F1, precision, recall (validation images)")
    ax.grid(False, axis="y")
    return figure


ANALYSED = evidence.FIGURES | explained.FIGURES | limits.FIGURES  # name -> name of the analysis, function of it


def analysed(name: str, found: Mapping[str, Any]) -> Figure:
    """One of the figures in ANALYSED. Raises BloodcellError where its analysis is not among those `found`."""
    which, draw = ANALYSED[name]
    if which not in found:
        raise BloodcellError(f"{name} needs an analysis that is not recorded: run `bloodcell trust --only {which}`.")
    return draw(found[which])


def draw_all(
    records: Sequence[Record],
    study: Sequence[Record],
    found: Mapping[str, Any],
    cells: CellImages | None = None,
    folder: Path = paths.FIGURES,
    stamp: str | None = None,
) -> dict[str, list[Path]]:
    """Draws into `folder` every figure that the records allow; gives the paths by the figure's name.

    records: of the main runs; study: of the study, the same list except in the demo; found: the analyses, by name, of
    which those that are not there are passed over. cells None: the sample sheet
    shows synthetic cells, and the class counts come from data/manifest.csv, if it is there. What cannot be drawn is
    said in a warning: without records that is all but the images and the network.
    """
    plan = evaluate.leading(records)[0].info["config"] if records else {"model": {}, "pixels": PROFILES["full"].pixels}
    table = study_table(study)
    counted = cells if cells is not None else manifest_cells()
    drawers: dict[str, Callable[[], Figure]] = {
        "sample_sheet": lambda: sample_sheet(synthetic_cells() if cells is None else cells),
        "architecture": lambda: architecture(ModelConfig(**plan["model"]), plan["pixels"]),
        "training_curves": lambda: training_curves(records, narrow=True),
        "ablations": lambda: ablations(table),
        **{
            name: functools.partial(draw, table)
            for name, draw, groups in (("beyond", beyond, FURTHER), ("parts", parts, TRIED))
            if table["group"].isin(groups).any()
        },
        "model_comparison": lambda: model_comparison(table),
        "confusion_matrix": lambda: confusion_matrix(records),
        "per_class_f1": lambda: per_class_f1(records),
        **{name: functools.partial(analysed, name, found) for name, (which, _) in ANALYSED.items() if which in found},
    }
    if counted is not None:
        drawers = {"class_distribution": lambda: class_distribution(counted), **drawers}
    drawn = {}
    for name, draw in drawers.items():
        try:
            figure = draw()
        except BloodcellError as error:
            warnings.warn(f"Figure {name} was left out. {error}", stacklevel=2)
        else:
            drawn[name] = save(figure, name, folder, stamp)
    return drawn


def _note(records: Sequence[Record]) -> str:
    n, images = len(records), records[0].info["data"]["validation"]
    shown = f", {images} validation images" if images else ""
    return f"profile {records[0].profile}, {n} seed{'s' if n > 1 else ''}{shown}"
