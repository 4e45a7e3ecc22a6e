"""Figures of what `explain` and `shortcuts` recorded, and of what they do; every cell shown is a drawn one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bloodcell_lib import gradcam
from bloodcell_lib.cells import COLOURS, TITLES
from bloodcell_lib.data import SYNTHETIC, CellImages
from bloodcell_lib.explain import drawn
from bloodcell_lib.shortcuts import CONDITIONS, paint
from bloodcell_lib.style import FAINT, GREY, INK, WIDTH, canvas, styled

ORDERS = {"grad_cam": "Grad-CAM", "cell": "the mask", "centre": "centre first", "random": "random"}
LOOKS = {  # Okabe and Ito's colours
    "grad_cam": {"color": "#D55E00"},
    "cell": {"color": "#009E73", "dashes": (4, 1.5)},
    "centre": {"color": "#0072B2", "dashes": (1.5, 1.5)},
    "random": {"color": GREY, "dashes": (6, 1.5, 1.5, 1.5)},
}
CONTROL, QUESTION = GREY, "#0072B2"


@styled
def heat_maps(content: dict[str, Any]) -> Figure:
    """Grad-CAM of the first network on a drawn cell of each class: the cell, and its map with the class it said."""
    shown = content["result"]["drawn"]
    images = drawn(shown["pixels"], shown["crop"])
    maps = gradcam.enlarged(torch.tensor(shown["maps"]), images.shape[-2:]).numpy()
    side = (WIDTH - 0.1) / 8
    note = f"{_note(content)}; drawn cells, above them what it said"
    figure, axes = canvas(2 * side + 0.3, note, nrows=2, ncols=8)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for column, image, heat, k in zip(axes.T, images.permute(0, 2, 3, 1).numpy(), maps, shown["said"]):
        grey = image.mean(2)
        column[0].imshow(image)
        column[1].imshow(grey, cmap="gray", vmin=0, vmax=255)
        # Opaque where it is hot: the picture stays to be seen where the network does not look.
        column[1].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * heat)
        column[0].set_title(TITLES[k].replace(" ", "\n"), size=7, color=COLOURS[k], pad=2, va="bottom")
    for ax in axes.flat:
        ax.axis("off")
    return figure


@styled
def location(content: dict[str, Any]) -> Figure:
    """Share of the heat that lies in the cell by class, against the cell's area and against another image's cell."""
    where = content["result"]["location"]
    figure, ((ax, beside),) = canvas(
        2.45, f"{_note(content)}; {where['images']} maps, 95 % intervals", ncols=2, width_ratios=(1.5, 1)
    )
    for k, row in enumerate(where.get("by_class", [])):
        if row:
            _dot(ax, row["area"], k, color=INK, marker="D", markerfacecolor="white", markersize=4)
            _dot(ax, row["inside"], k, color=COLOURS[k], marker="o", markeredgecolor=INK, markeredgewidth=0.5)
    for marker, words in (("o", "heat in the cell"), ("D", "the cell's area")):
        ax.plot([], [], marker, color=INK, markerfacecolor=GREY if marker == "o" else "white", label=words)
    ax.set(ylim=(7.6, -0.6), yticks=range(8), yticklabels=TITLES, xlabel="share of the picture", xlim=(0, 1))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
    rows = {
        "area": "the cell's area",
        "inside_other": "heat in another's cell",
        "inside": "heat in the cell",
        "ceiling": "the mask, as coarse",
        "hit": "hottest pixel in it",
        "centre_hit": "centre in it",
    }
    for k, name in enumerate(rows):
        if name in where:
            _dot(beside, where[name], k, color=QUESTION if name in ("inside", "hit") else INK, marker="o")
    beside.set(ylim=(5.6, -0.6), yticks=range(6), yticklabels=rows.values(), xlim=(0, 1.03), xlabel="share")
    for each in (ax, beside):
        each.grid(False, axis="y")
        each.tick_params(axis="y", length=0)
    return figure


@styled
def faithfulness(content: dict[str, Any]) -> Figure:
    """Deletion and insertion in four orders, and the maps of the network as it forgets part after part."""
    result = content["result"]
    curves, forgotten = result["curves"], dict(result["randomisation"])
    figure, (axes,) = canvas(2.35, f"{_note(content)}; {curves['images']} images, 95 % intervals", ncols=3)
    share = np.linspace(0, 100, curves["steps"] + 1)
    for ax, kind, words in ((axes[0], "deletion", "taken away"), (axes[1], "insertion", "put back")):
        for name, label in ORDERS.items():
            row = curves[kind][name]
            ax.plot(share, row["curve"], **LOOKS[name], label=f"{label}  {row['area']['mean']:.2f}")
        ax.set(xlabel=f"% of pixels {words}", ylim=(0, 1), xlim=(0, 100), title=f"{kind}, area under")
        ax.legend(loc="upper right" if kind == "deletion" else "lower right", fontsize=7, handlelength=2.2)
    axes[0].set_ylabel("probability of the class")
    floor, _ = forgotten.pop("between_images"), forgotten.pop("images")
    axes[2].axhspan(floor["low"], floor["high"], color=FAINT, zorder=0)
    axes[2].axhline(floor["mean"], color=GREY, linewidth=0.8)
    axes[2].text(len(forgotten) - 0.55, floor["mean"] + 0.03, "two images' maps", size=7, color=GREY, ha="right")
    for k, row in enumerate(forgotten.values()):
        axes[2].plot([k, k], [row["low"], row["high"]], color=LOOKS["grad_cam"]["color"], linewidth=1.2)
        axes[2].plot(k, row["mean"], "o", color=LOOKS["grad_cam"]["color"])
    axes[2].axhline(0, color=INK, linewidth=0.6)
    bottom = min(-0.25, *(row["low"] - 0.05 for row in forgotten.values()))
    axes[2].set(ylim=(bottom, 1.02), xlim=(-0.5, len(forgotten) - 0.5), title="maps after randomising")
    axes[2].set_xticks(range(len(forgotten)), [f"to {name}" if k else name for k, name in enumerate(forgotten)])
    axes[2].tick_params(axis="x", rotation=60, length=0, labelsize=7)
    axes[2].set_ylabel("rank correlation")
    return figure


@styled
def painted(content: dict[str, Any]) -> Figure:
    """Accuracy with cell or background painted over, each with its interval and its difference to the untouched."""
    result = content["result"]
    rows = result["conditions"]
    held = f"moved masks still hold {100 * result['held_by_moved_mask']:.0f} % of a cell"
    note = f"{_note(content)}, {result['images']} images; 95 % intervals; {held}"
    figure, ((ax,),) = canvas(2.75, note)
    for k, (name, words) in enumerate(CONDITIONS.items()):
        row = rows[name]
        colour = INK if name == "untouched" else CONTROL if words.startswith("control") else QUESTION
        ax.plot([100 * row["low"], 100 * row["high"]], [k, k], color=colour, linewidth=1.4)
        ax.plot(100 * row["accuracy"], k, "o", color=colour)
        change = row["difference"]
        text = f"{100 * row['accuracy']:.1f}"
        if name != "untouched":
            text += f"   {change['points']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]"
        ax.text(1.02, k, text.replace("-", "−"), transform=ax.get_yaxis_transform(), va="center", size=7.5)
    ax.axvline(100 / len(TITLES), color=GREY, linewidth=0.8, linestyle=":")
    ax.text(100 / len(TITLES), -0.75, "chance", size=7, color=GREY, ha="center", va="bottom")
    ax.text(1.02, -0.75, "%, change in points", transform=ax.get_yaxis_transform(), size=7, color=GREY, va="bottom")
    last = len(CONDITIONS) - 1
    ax.set(ylim=(last + 0.6, -0.7), yticks=range(last + 1), xlim=(0, 101), xlabel="accuracy (%)")
    ax.set_yticks(range(last + 1), CONDITIONS.values(), size=7.5)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    return figure


@styled
def painted_examples(pixels: int = 96, crop: int | None = 240) -> Figure:
    """What each condition looks like, on a drawn cell of each class, which has no other of its class to swap with."""
    images = drawn(pixels, crop)
    shown = paint(CellImages(images, torch.arange(8), tuple(map(str, range(8))), ("",) * 8, SYNTHETIC)).images
    names = [name for name in CONDITIONS if name != "swapped_same"]
    words = 1.9  # inches, left of the pictures
    side = (WIDTH - words) / 8
    figure, axes = canvas(len(names) * side, f"Pictures: {SYNTHETIC}", nrows=len(names))
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.005, wspace=0, hspace=0)
    for ax, name in zip(axes[:, 0], names):
        ax.imshow(np.concatenate(list(shown[name].permute(0, 2, 3, 1).numpy()), axis=1))
        label = CONDITIONS[name].replace(", ", ",\n", 1).replace(": ", ":\n", 1)
        ax.set_ylabel(label, rotation=0, size=6.5, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
    return figure


# Figures that need nothing but their analysis: name of the file, of the analysis, function.
FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {
    "painted_examples": ("shortcuts", lambda _: painted_examples()),
    "painted": ("shortcuts", painted),
    "heat_maps": ("explain", heat_maps),
    "heat_location": ("explain", location),
    "heat_faithfulness": ("explain", faithfulness),
}


def _dot(ax: Axes, row: dict[str, float], y: float, **look: Any) -> None:
    ax.plot([row["low"], row["high"]], [y, y], color=look["color"], linewidth=1.4, zorder=2)
    ax.plot(row["mean"], y, linestyle="", zorder=3, **look)


def _note(content: dict[str, Any]) -> str:
    runs = len(content["result"]["runs"])
    return f"{content['experiment']}, profile {content['profile']}, {runs} network{'s' * (runs > 1)}"
