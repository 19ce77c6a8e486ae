"""A panel per group, medians over matrices of any size, and room for groups without a null."""

import numpy as np
import pytest

from distill.figures.canvas import pixels
from distill.figures.spectra import FLOOR, POINTS, Panel, spectra


def test_a_panel_shows_the_median_and_the_range_of_its_matrices() -> None:
    curves = [[1.0, 0.1], [1.0, 0.5, 0.0], [1.0, 0.3]]
    (axes,) = spectra([Panel("mlp", curves, [[1.0, 0.9]])], title="t").axes
    null, observed = axes.get_lines()
    assert (null.get_label(), observed.get_label()) == ("null", "observed")
    values = np.asarray(observed.get_ydata())
    assert len(values) == POINTS
    assert values[0] == 1
    assert values[-1] == pytest.approx(0.1)
    assert axes.collections[1].get_paths()[0].vertices[:, 1].min() == pytest.approx(FLOOR)
    assert axes.get_title(loc="left") == "mlp, 3 matrices"


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6])
def test_every_group_has_its_panel(groups: int) -> None:
    panels = [Panel(f"group{i}", [[1.0]], [[1.0]] if i else []) for i in range(groups)]
    figure = spectra(panels, title="t")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"group{i}, 1 matrix" for i in range(groups)]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(labels) == ({"observed", "null"} if groups > 1 else {"observed"})
    assert pixels(figure).std() > 0


@pytest.mark.parametrize("panels", [[], [Panel("mlp", [])]])
def test_a_panel_needs_a_spectrum(panels: list[Panel]) -> None:
    with pytest.raises(ValueError, match="panels must have an observed spectrum each"):
        spectra(panels, title="t")
