"""Means and bands of curves: which runs they hold, and what thinning does to them."""

import re
from pathlib import Path
from typing import Any

import pytest

from distill.report.bands import COLOURS, MAX_POINTS, Band, band, band_chart, style
from distill.report.collect import RunRecord
from distill.report.groups import Group, Member


def run(name: str, loss: dict[int, float], planned: int | None = 4, **more: Any) -> Member:
    metrics = tuple({"step": step, "loss": value, **more} for step, value in loss.items())
    config = {"seed": 0, "trainer": {"max_steps": planned}}
    return Member(name, RunRecord(Path("/none") / name, config, {}, metrics, (), (), 1.0, {}))


def group(*runs: Member, index: int = 0) -> Group:
    return Group(index, chr(65 + index), f"<group> {index}", list(runs))


def found(*runs: Member) -> Band:
    result = band(group(*runs), "loss")
    assert result is not None
    return result


def test_the_mean_and_the_extremes_of_complete_runs() -> None:
    result = found(run("a", {0: 1.0, 2: 3.0, 4: 5.0}), run("b", {0: 3.0, 2: 3.0, 4: 1.0}))
    assert result.mean == [(0, 2.0), (2, 3.0), (4, 3.0)]
    assert result.rows.min(axis=0).tolist() == [1.0, 3.0, 1.0]
    assert result.singles == []


def test_an_incomplete_run_is_a_curve_of_its_own() -> None:
    result = found(run("a", {0: 1.0, 4: 5.0}), run("b", {0: 9.0, 2: 9.0}))
    assert result.mean == [(0, 1.0), (4, 5.0)]
    assert [curve for _, curve in result.singles] == [[(0, 9.0), (2, 9.0)]]
    assert "stopped at step 2" in result.singles[0][0]


def test_only_steps_that_all_have_recorded_are_averaged() -> None:
    result = found(run("a", {1: 1.0, 2: 2.0, 4: 4.0}), run("b", {2: 4.0, 3: 9.0, 4: 8.0}))
    assert result.mean == [(2, 3.0), (4, 6.0)]


def test_runs_without_a_common_step_are_drawn_singly() -> None:
    result = found(run("a", {1: 1.0, 5: 2.0}), run("b", {2: 4.0, 4: 8.0}))
    assert result.mean == []
    assert len(result.singles) == 2
    assert result.longest == [(1, 1.0), (5, 2.0)]


def test_a_metric_that_nobody_has_is_no_band() -> None:
    assert band(group(run("a", {0: 1.0, 4: 1.0})), "eval/accuracy") is None


def test_long_curves_are_averaged_run_by_run_before_the_spread_is_taken() -> None:
    steps = range(10 * MAX_POINTS)
    runs = [
        run(str(sign), {step: sign * (-1.0) ** step for step in steps}, planned=10 * MAX_POINTS - 1) for sign in (1, -1)
    ]
    result = found(*runs)
    assert (len(result.mean), result.stretch) == (MAX_POINTS, 10)
    # Noise within a run is gone, so no spread between the runs is left.
    assert abs(result.rows).max() == 0
    assert result.steps[0] == 4.5


@pytest.mark.parametrize("length", [1, MAX_POINTS, MAX_POINTS + 1, 2 * MAX_POINTS + 3])
def test_thinning_keeps_the_mean_whatever_the_length(length: int) -> None:
    result = found(run("a", dict.fromkeys(range(length), 2.5), planned=length - 1))
    assert len(result.mean) <= MAX_POINTS
    assert {value for _, value in result.mean} == {2.5}


def test_a_chart_has_bands_letters_tips_and_only_the_pages_colours() -> None:
    bands = [found(run("a", {0: 1.0, 4: 5.0}), run("b", {0: 2.0, 4: 6.0}), run("c", {0: 1.0, 2: 1.0}))]
    bands += [Band(group(index=index), one.steps, one.rows, [], 1) for index, one in enumerate(bands * 9) if index]
    svg = band_chart("t", bands, 4)
    assert "fill-opacity: 0.18" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "<title>A: &lt;group&gt; 0, mean of 2 runs</title>" in svg
    assert "<title>A: &lt;group&gt; 0, seed 0, stopped at step 2</title>" in svg
    for index in range(9):
        assert f"var(--g{index % COLOURS + 1})" in svg
        assert f">{chr(65 + index)}</text>" in svg


def test_letters_give_way_to_tips_where_there_are_too_many() -> None:
    one = found(run("a", {0: 1.0, 4: 5.0}))
    bands = [Band(group(index=index), one.steps, one.rows, [], 1) for index in range(17)]
    assert ">A</text>" not in band_chart("t", bands, 4)


def test_a_wide_range_of_positive_values_is_logarithmic() -> None:
    assert ">0.1</text>" in band_chart("t", [found(run("a", {0: 0.01, 4: 50.0}))], 4)
    assert ">0.1</text>" not in band_chart("t", [found(run("a", {0: 0.0, 4: 50.0}))], 4)


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.0, 1.0)])
def test_shares_stay_within_their_bounds(values: tuple[float, float]) -> None:
    svg = band_chart("t", [found(run("a", dict(zip((0, 4), values, strict=True))))], 4, percent=True)
    ticks = [float(tick.replace("−", "-")) for tick in re.findall(r">([−\d.]+) %</text>", svg)]
    assert ticks
    assert all(0 <= tick <= 100 for tick in ticks)


def test_styles_are_all_different_for_many_groups() -> None:
    assert len({style(index) for index in range(24)}) == 24


def test_letters_of_curves_that_stop_together_are_apart() -> None:
    ended = [group(run("a", {0: 1.0, 2: 1.0}), index=index) for index in range(3)]
    bands = [one for each in [*ended, group(run("b", {0: 1.0, 4: 5.0}), index=3)] if (one := band(each, "loss"))]
    svg = band_chart("t", bands, 4)
    places = [
        re.search(rf"<text[^>]*?(?:translate\(|x=\"[\d.]+\" y=\")([^>]*)>{letter}</text>", svg) for letter in "ABC"
    ]
    assert len({place[1] for place in places if place}) == 3
