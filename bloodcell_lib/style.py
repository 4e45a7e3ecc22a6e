"""The one style of every figure, and the one way to save it: at the report's column width, PDF and PNG."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bloodcell_lib import paths

WIDTH, DPI = 5.5, 200  # inches: of the report's text block
FOOT = 0.17  # inches kept free below every figure for its note and its stamp
INK, GREY, FAINT = "#222222", "#666666", "#DDDDDD"
RC = {
    # A Times that matplotlib brings along, as the report's text is set in Times: the same on every machine.
    "font.family": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
    "figure.dpi": 150,  # on a notebook's page
    "savefig.dpi": DPI,
    "pdf.fonttype": 42,  # TrueType, which printers and journals accept
}


def style() -> AbstractContextManager[None]:
    """The one style, as a context; it starts from matplotlib's defaults, whatever the user has set."""
    return mpl.style.context(["default", RC])


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Runs a figure function in `style`, and lays the figure out there, so that it looks the same wherever shown."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with style():
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            return figure

    return wrapper


class Page(Figure):
    """A figure that pyplot does not know: nothing to close, and a notebook shows it once, whatever its backend."""

    def _repr_png_(self) -> bytes:
        with style():
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def canvas(height: float, note: str = "", width: float = WIDTH, **grid) -> tuple[Page, np.ndarray]:
    """A figure `height` + `FOOT` inches high, axes as `subplots` gives them, a note at its foot.

    One that is narrower than the text gets a second foot, for the stamp has no room beside the note.
    """
    foot = FOOT if width == WIDTH else 2 * FOOT
    whole = height + foot
    figure = Page((width, whole), layout="constrained")
    figure.get_layout_engine().set(rect=(0, foot / whole, 1, 1 - foot / whole))
    figure.text(0.05 / width, (0.03 + foot - FOOT) / whole, note, size=7.5, color=GREY, va="bottom")
    return figure, figure.subplots(**grid, squeeze=False)


def save(figure: Figure, name: str, folder: Path, stamp: str | None = None) -> list[Path]:
    """Writes `<folder>/<name>.pdf` and `.png` (200 dpi), each whole, the same bytes for the same figure; closes it.

    stamp: words printed at the lower right, such as "synthetic demo".
    """
    written = []
    with style():
        if stamp:
            look = {"size": 7.5, "weight": "bold", "color": "#993322", "ha": "right", "va": "bottom"}
            figure.text(1 - 0.05 / figure.get_figwidth(), 0.03 / figure.get_figheight(), stamp, **look)
        # Neither a date nor a version: a figure changes in git only when its picture does.
        nothing = {".pdf": {"CreationDate": None, "Creator": None, "Producer": None}, ".png": {"Software": None}}
        for suffix, metadata in nothing.items():
            target = Path(folder) / f"{name}{suffix}"
            with paths.write_whole(target) as temporary:
                figure.savefig(temporary, dpi=DPI, metadata=metadata)
            written.append(target)
    plt.close(figure)
    return written
