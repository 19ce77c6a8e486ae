"""What every figure stands on: colours, a sheet without pyplot's global state, and its pixels.

Matplotlib is imported when something is drawn, so that a run that draws nothing does not wait for it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1d2126", "#5c646e", "#dfe2e6", "#ffffff"
OBSERVED, NULL = "#2f66c0", "#d06a1e"
"""Blue and orange: told apart by everybody, and in grey by their lightness."""
SEQUENTIAL, DIVERGING = "viridis", "PuOr"
"""Colour maps for shares and for differences (orange below 0, purple above); both readable for the colour-blind."""
DPI = 130


def sheet(width: float, height: float) -> Figure:
    """An empty figure of this many inches that no global state knows of."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # A margin for the fonts of a browser, which may be wider than those the layout is made with.
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor=PAPER)


def dress(axes: Axes, *, grid: bool = True) -> None:
    """The look of all axes: two thin spines, small muted text, a faint grid behind the data."""
    for name, spine in axes.spines.items():
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=8, which="both", width=0.6)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True, color=GRID, linewidth=0.6)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(MUTED)
        text.set_fontsize(9)


def write(axes: Axes, title: str) -> None:
    """A title above the axes, without a meaning for dollars in it."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, parse_math=False)


def plain(axes: Axes) -> None:
    """Names on the axes are not formulas: a dollar in them is a dollar."""
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)


def shorten(name: str, most: int = 32) -> str:
    """A long name with its middle left out: the ends tell layers and modules apart."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The figure as an image ``[height, width, 3]`` of uint8, which W&B and TensorBoard take."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    path.write_bytes(buffer.getvalue())
