"""One outline per name, what is exactly 0 in words, and rows that do not fit the bins refused."""

import pytest
from matplotlib.patches import StepPatch

from distill.figures.canvas import pixels
from distill.figures.histogram import histogram

EDGES = [1e-7, 1e-6, 1e-5, 1e-4]


def test_each_name_has_its_outline_and_the_legend_says_what_is_zero() -> None:
    shares = {"observed": [0.1, 0.1, 0.05], "_null": [0.2, 0.1, 0.0]}
    figure = histogram(EDGES, shares, title="|Δ|", zero={"observed": 0.75}, tolerance=1e-5)
    (axes,) = figure.axes
    outlines = [patch for patch in axes.patches if isinstance(patch, StepPatch) and not patch.get_fill()]
    assert [patch.get_data().values.tolist() for patch in outlines] == [[10, 10, 5], [20, 10, 0]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == [
        "observed, exactly 0: 75.0 %",
        "_null",
        "tolerance 1e-5",
    ]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == (1e-7, 1e-4)
    assert pixels(figure).std() > 0


def test_without_anything_moved() -> None:
    assert pixels(histogram(EDGES, {"observed": [0, 0, 0]}, title="t", zero={"observed": 1.0})).std() > 0


@pytest.mark.parametrize("edges", [[0.0, 1.0], [1e-5], [1e-5, 1e-6]], ids=["zero", "one", "falling"])
def test_edges_rise_from_above_zero(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="edges must be positive and rising"):
        histogram(edges, {}, title="t")


def test_every_row_has_one_value_per_bin() -> None:
    with pytest.raises(ValueError, match=r"3 values each, but is \{'observed': 2\}"):
        histogram(EDGES, {"observed": [1, 2]}, title="t")
