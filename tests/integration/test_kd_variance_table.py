"""The table of docs/kd_variance.md on one seed: what each of its rows claims."""

from __future__ import annotations

import pytest
import torch

from benchmarks.kd_variance import WEIGHTS, load, measure, optimum

Rows = list[list[float]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    torch.set_num_threads(1)
    problem = load()
    return measure(problem, optimum(problem), seed=0, epochs=60)[0]


def test_a_near_optimal_teacher_leaves_the_square_of_what_is_not_taken_off(rows: Rows) -> None:
    for weight, found in zip(WEIGHTS, rows[0], strict=True):
        assert found == pytest.approx((1 - weight) ** 2, rel=0.1, abs=1e-3), weight


def test_the_best_weight_moves_left_as_the_teacher_gets_worse(rows: Rows) -> None:
    good, bad = (WEIGHTS[row.index(min(row))] for row in (rows[1], rows[3]))
    assert 1 > good > bad
    for row in (rows[1], rows[3]):
        assert min(row) < 1
        assert row[-1] > 1.5 * min(row), "a U"
    assert rows[3][-1] > 1, "worse than no teacher"


def test_the_unbiased_form_does_not_blow_up(rows: Rows) -> None:
    for biased, unbiased in ((rows[1], rows[2]), (rows[3], rows[4])):
        assert max(unbiased) < 1
        assert unbiased[-1] < biased[-1] / 2
