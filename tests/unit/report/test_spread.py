"""Mean, deviation and intervals."""

import math

import pytest

from distill.report.comparison import interval
from distill.report.spread import paired, spread, t_quantile, verdict


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (29, 2.0452), (120, 1.9799)]
)
def test_quantiles_are_those_of_the_printed_table(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, abs=1e-4)


def test_many_degrees_of_freedom_are_normal() -> None:
    assert t_quantile(10_000) == pytest.approx(1.96, abs=1e-3)


def test_three_values_by_hand() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert found.low == pytest.approx(2 - 2.4842, abs=1e-3)
    assert found.high == pytest.approx(2 + 2.4842, abs=1e-3)


def test_one_value_has_neither_deviation_nor_interval() -> None:
    found = spread([0.5])
    assert found is not None
    assert (found.mean, found.sd, found.half, found.low, found.high) == (0.5, None, None, None, None)
    assert spread([]) is None


def test_pairs_are_of_the_same_seed() -> None:
    found = paired({0: 1.0, 1: 5.0, 7: 99.0}, {1: 4.0, 0: 0.5, 8: 0.0})
    assert found is not None
    assert (found.n, found.mean) == (2, 0.75)
    assert paired({0: 1.0, 1: 1.0}, {1: 1.0, 2: 1.0}) is None


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ({0: 1.0, 1: 1.1, 2: 1.2}, {0: 0.0, 1: 0.1, 2: 0.1}, "interval excludes 0"),
        ({0: 1.0, 1: 1.1, 2: 1.2}, {0: 0.0, 1: 3.0, 2: 0.0}, "interval includes 0"),
        ({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, "no difference in any pair"),
    ],
)
def test_a_difference_is_called_what_its_interval_allows(
    left: dict[int | str, float], right: dict[int | str, float], said: str
) -> None:
    found = paired(left, right)
    assert found is not None
    assert verdict(found) == said


def test_pairing_finds_what_seeds_hide() -> None:
    left: dict[int | str, float] = {0: 0.10, 1: 0.50, 2: 0.90}
    right = {seed: value - 0.02 for seed, value in left.items()}
    found = paired(left, right)
    alone = spread(list(left.values()))
    assert found is not None
    assert alone is not None
    assert found.half is not None
    assert alone.half is not None
    assert found.half < 1e-6 < alone.half


@pytest.mark.parametrize(("values", "shown"), [([0.0, 0.0], "–"), ([0.4, 0.6], "−77.1 to 177.1 %")])
def test_equal_values_have_no_interval(values: list[float], shown: str) -> None:
    found = spread(values)
    assert found is not None
    assert interval(found) == shown
