"""Heat maps of one number per layer and module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

MOST_LABELS = 50
"""With more rows or columns, only every n-th is named."""
MOST_NUMBERS = 320
"""With more cells, none has its number written into it."""
_MISSING = "#e9ebee"


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]] | np.ndarray[Any, Any],
    *,
    title: str,
    label: str,
    diverging: bool = False,
) -> Figure:
    """Colours for ``values`` [rows, columns], from the least to the greatest of them.

    Missing cells (None, NaN) are grey and crossed out; ``label`` names the quantity beside the colour bar. With
    ``diverging`` 0 is white and colours reach equally far on both sides.

    Raises:
        ValueError: there are no cells, or ``values`` is not [rows, columns].
    """
    cells = np.array(values, dtype=float)
    if not rows or not columns or cells.shape != (len(rows), len(columns)):
        raise ValueError(f"values must be [{len(rows)}, {len(columns)}] and not empty, but is {list(cells.shape)}")
    cells[~np.isfinite(cells)] = np.nan
    names = max(len(canvas.shorten(name)) for name in rows)
    width, height = min(0.62 * len(columns), 14), min(max(0.24 * len(rows), 0.6), 16)
    figure = canvas.sheet(1.6 + 0.085 * names + width, 1.4 + height)
    axes = figure.add_subplot()
    mesh = _paint(axes, cells, diverging)
    _name(axes, rows, columns)
    _mark(axes, cells, mesh, signed=diverging)
    _scale(figure.colorbar(mesh, ax=axes, pad=0.02, aspect=height / 0.12), label)
    canvas.write(axes, title)
    return figure


def _paint(axes: Axes, cells: np.ndarray[Any, Any], diverging: bool) -> QuadMesh:
    low, high = _limits(cells, diverging)
    axes.set_facecolor(_MISSING)
    axes.invert_yaxis()
    return axes.pcolormesh(
        np.ma.masked_invalid(cells),
        cmap=canvas.DIVERGING if diverging else canvas.SEQUENTIAL,
        vmin=low,
        vmax=high,
        edgecolors=canvas.PAPER,
        linewidth=0.6 if len(cells) <= 4 * MOST_LABELS else 0,
    )


def _scale(bar: Colorbar, label: str) -> None:
    for spine in bar.ax.spines.values():
        spine.set_visible(False)
    bar.ax.tick_params(colors=canvas.MUTED, labelsize=8)
    bar.set_label(label, color=canvas.MUTED, fontsize=9)


def _limits(cells: np.ndarray[Any, Any], diverging: bool) -> tuple[float, float]:
    known = cells[np.isfinite(cells)]
    if not known.size:
        return (-1.0, 1.0) if diverging else (0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    if diverging:
        high = max(abs(low), abs(high))
        low = -high
    # Equal cells get the middle of the scale, not a scale of no width.
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _name(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    canvas.dress(axes, grid=False)
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        step = -(-len(names) // MOST_LABELS)
        places = range(0, len(names), step)
        axis.set_ticks([place + 0.5 for place in places], [canvas.shorten(names[place]) for place in places])
    if max(len(name) for name in columns) > 5:
        axes.tick_params(axis="x", labelrotation=40)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
            text.set_rotation_mode("anchor")
    axes.tick_params(length=0)
    canvas.plain(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark(axes: Axes, cells: np.ndarray[Any, Any], mesh: QuadMesh, *, signed: bool) -> None:
    """Numbers in the cells where they fit, and crosses where there is none."""
    missing = np.argwhere(np.isnan(cells))
    if len(missing):
        axes.scatter(missing[:, 1] + 0.5, missing[:, 0] + 0.5, marker="x", s=14, color=canvas.MUTED, linewidths=0.8)
    if cells.size > MOST_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(cells):
        if np.isnan(value):
            continue
        red, green, blue, _ = mesh.to_rgba(value)
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "in_layout": False}
        look["color"] = canvas.INK if bright else canvas.PAPER
        axes.text(column + 0.5, row + 0.5, _short(float(value), signed=signed), **look)


def _short(value: float, *, signed: bool) -> str:
    """At most about five characters: ``0.873``, ``+0.021``, ``3e-05``."""
    sign = "+" if signed and value else ""
    if value == 0 or 0.001 <= abs(value) < 100:
        return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"
    return f"{value:{sign}.0e}"
