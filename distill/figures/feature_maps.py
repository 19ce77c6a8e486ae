"""Where two networks agree, over the images they look at: a row for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distill.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Maps = np.ndarray[Any, Any]
COLUMNS = {"agreement": "PuOr", "consensus": "viridis", "divergence": "viridis"}
"""Maps beside the image, each with its colours: cosines from -1 to 1; weights from 0 to the highest of the image."""
SIDE = 1.15
"""Inches of an image."""


def feature_maps(pixels: Maps, maps: dict[str, Maps], *, title: str) -> Figure:
    """``pixels`` ``[n, C, X, Y]`` in [0, 1], and ``[n, h, w]`` by the names of :data:`COLUMNS`, drawn over them.

    Raises:
        ValueError: there is no image, or a map is not of as many images.
    """
    if not len(pixels) or any(len(maps[name]) != len(pixels) for name in COLUMNS):
        found = [len(values) for values in maps.values()]
        raise ValueError(f"maps must be of {len(pixels)} images, at least one, but are of {found}")
    figure = canvas.sheet(SIDE * (1 + len(COLUMNS)) + 0.4, SIDE * len(pixels) + 0.6)
    axes = figure.subplots(len(pixels), 1 + len(COLUMNS), squeeze=False)
    for row, image in zip(axes, pixels, strict=True):
        for place in row:
            place.set_axis_off()
            place.imshow(_grey(image), cmap="gray", vmin=0, vmax=1)
    for column, (name, colours) in enumerate(COLUMNS.items(), start=1):
        for row, values in zip(axes, maps[name], strict=True):
            _over(row[column], values, colours, pixels.shape[2:])
        axes[0, column].set_title(name, fontsize=8, color=canvas.INK)
    figure.suptitle(title, fontsize=9, color=canvas.INK, parse_math=False)
    return figure


def _grey(image: Maps) -> Maps:
    found: Maps = image.mean(0)
    return found


def _over(axes: Axes, values: Maps, colours: str, size: tuple[int, int]) -> None:
    signed = colours == canvas.DIVERGING
    low, high = (-1.0, 1.0) if signed else (0.0, float(values.max()) or 1.0)
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    axes.imshow(values, cmap=colours, vmin=low, vmax=high, alpha=0.7, extent=extent, interpolation="nearest")
