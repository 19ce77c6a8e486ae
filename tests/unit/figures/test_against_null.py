"""Each line has its point, its null with a spread where there is one, and its name."""

import pytest
from matplotlib.axes import Axes

from distill.figures.against_null import Beside, against_null
from distill.figures.canvas import pixels


def points(axes: Axes) -> list[float]:
    return [float(line.get_xdata()[0]) for line in axes.get_lines() if line.get_marker() == "o"]  # type: ignore[index]


def test_each_line_is_named_and_drawn() -> None:
    lines = [Beside("all", 0.82, 0.8, 0.01), Beside("one draw", 0.7, 0.7), Beside("no $null$", 0.9)]
    figure = against_null(lines, title="t", label="unmoved", percent=True)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["all", "one draw", "no $null$"]
    assert points(axes) == [82, 70, 90]
    spreads = [bar.get_segments()[0][:, 0].tolist() for bar in axes.collections]
    assert spreads[0] == pytest.approx([79, 81])
    assert spreads[1] == pytest.approx([70, 70])
    assert len(spreads) == 2
    assert axes.get_xlabel() == "unmoved, %"
    assert axes.yaxis_inverted(), "the first line is on top"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["observed", "null: mean ± spread"]
    assert pixels(figure).std() > 0


def test_numbers_that_are_no_shares_are_drawn_as_they_are() -> None:
    (axes,) = against_null([Beside("all", 24.0, 60.0, 1.0)], title="t", label="stable rank").axes
    assert points(axes) == [24]
    assert axes.get_xlabel() == "stable rank"


def test_there_must_be_a_line() -> None:
    with pytest.raises(ValueError, match="lines must not be empty"):
        against_null([], title="t", label="l")
