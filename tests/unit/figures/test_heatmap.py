"""Every cell gets its colour and number, missing ones a cross, and names stay readable whatever they hold."""

import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh

from distill.figures.canvas import pixels, shorten
from distill.figures.heatmap import MOST_LABELS, MOST_NUMBERS, heat_map


def drawn(axes: Axes) -> tuple[QuadMesh, list[str]]:
    (mesh,) = (child for child in axes.collections if isinstance(child, QuadMesh))
    return mesh, [text.get_text() for text in axes.texts]


def test_every_cell_has_its_number_and_missing_ones_a_cross() -> None:
    figure = heat_map(["0", "1"], ["q_proj", "up_proj"], [[0.9, None], [0.1, math.nan]], title="t", label="share")
    axes, bar = figure.axes
    mesh, numbers = drawn(axes)
    assert numbers == ["0.900", "0.100"]
    assert np.ma.count(mesh.get_array()) == 2
    (crosses,) = (child for child in axes.collections if isinstance(child, PathCollection))
    assert sorted(map(tuple, crosses.get_offsets().tolist())) == [(1.5, 0.5), (1.5, 1.5)]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["q_proj", "up_proj"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "1"]
    assert bar.get_ylabel() == "share"
    assert mesh.get_clim() == (0.1, 0.9)


def test_differences_reach_equally_far_on_both_sides_of_zero() -> None:
    figure = heat_map(["0"], ["a", "b"], [[-0.3, 0.1]], title="t", label="observed - null", diverging=True)
    mesh, numbers = drawn(figure.axes[0])
    assert mesh.get_clim() == (-0.3, 0.3)
    assert mesh.get_cmap().name == "PuOr"
    assert numbers == ["-0.300", "+0.100"]


def test_a_hundred_layers_keep_their_colours_and_lose_numbers_and_some_names() -> None:
    rows = [str(layer) for layer in range(100)]
    values = np.random.default_rng(0).random((100, 8))
    axes = heat_map(rows, [f"module{i}" for i in range(8)], values, title="t", label="l").axes[0]
    mesh, numbers = drawn(axes)
    assert values.size > MOST_NUMBERS
    assert numbers == []
    assert mesh.get_array().shape == (100, 8)
    assert len(axes.get_yticklabels()) <= MOST_LABELS
    assert axes.get_yticklabels()[1].get_text() == "2"


def test_names_are_no_formulas_and_long_ones_keep_both_ends() -> None:
    name = "model.layers.0." + "very_" * 20 + "long$weight"
    figure = heat_map([name], ["a$b$"], [[1.0]], title="$x$", label="l")
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text() == shorten(name)
    assert label.get_text().startswith("model.layers.0")
    assert label.get_text().endswith("long$weight")
    assert len(label.get_text()) == 32
    assert not label.get_parse_math()
    assert pixels(figure).std() > 0


@pytest.mark.parametrize("values", [[[0.5, 0.5]], [[0.0, 0.0]], [[None, None]]], ids=["equal", "zeros", "none"])
@pytest.mark.parametrize("diverging", [False, True])
def test_a_scale_has_a_width_whatever_the_cells(values: list[list[float | None]], diverging: bool) -> None:
    figure = heat_map(["0"], ["a", "b"], values, title="t", label="l", diverging=diverging)
    low, high = drawn(figure.axes[0])[0].get_clim()
    assert low < high
    image = pixels(figure)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert len(np.unique(image)) > 10


@pytest.mark.parametrize(("rows", "values"), [(["0"], [[1.0]]), ([], []), (["0", "1"], [[1.0, 2.0]])])
def test_values_must_fit_their_names(rows: list[str], values: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="values must be"):
        heat_map(rows, ["a", "b"], values, title="t", label="l")
