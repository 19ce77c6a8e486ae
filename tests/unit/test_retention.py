"""Which checkpoints stay: the last, the best and milestones, and never nothing."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from distill.retention import Candidate, Retention, doomed


def kept(values: dict[int, float | None], rules: Retention) -> list[int]:
    gone = doomed([Candidate(step, value) for step, value in values.items()], rules)
    return [step for step in sorted(values) if step not in gone]


ACCURACY = {10: 0.1, 20: 0.7, 30: 0.4, 40: 0.7, 50: None, 60: 0.2}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Retention(1), [60]),
        (Retention(2), [50, 60]),
        (Retention(9), [10, 20, 30, 40, 50, 60]),
        # Of equally good ones the later.
        (Retention(1, keep_best=1, monitor="a"), [40, 60]),
        (Retention(1, keep_best=3, monitor="a"), [20, 30, 40, 60]),
        (Retention(1, keep_best=1, monitor="a", mode="min"), [10, 60]),
        (Retention(1, keep_every_n_steps=20), [20, 40, 60]),
        (Retention(2, keep_best=1, monitor="a", mode="min", keep_every_n_steps=30), [10, 30, 50, 60]),
    ],
)
def test_union_of_last_best_and_milestones(rules: Retention, expected: list[int]) -> None:
    assert kept(ACCURACY, rules) == expected


def test_what_was_not_measured_is_not_best() -> None:
    rules = Retention(1, keep_best=2, monitor="loss", mode="min")
    assert kept({1: math.nan, 2: -math.inf, 3: 5.0, 4: None, 5: 9.0}, rules) == [3, 5]


def test_a_damaged_one_stays_and_takes_no_place() -> None:
    candidates = [Candidate(1), Candidate(2), Candidate(3, intact=False), Candidate(4, intact=False)]
    assert doomed(candidates, Retention(1)) == [1]
    assert doomed([Candidate(3), Candidate(2, intact=False)], Retention(1)) == []


def test_nothing_is_lost_whatever_the_order_of_saves_and_crashes() -> None:
    # A crash between publishing and deleting leaves more than the rules want; the next save catches up.
    draw = random.Random(0)
    for last, best, every in itertools.product((1, 3), (0, 2), (None, 4)):
        rules = Retention(last, best, "a" if best else None, "max", every)
        present, seen = dict[int, float | None](), dict[int, float | None]()
        for step in range(1, 30):
            seen[step] = present[step] = draw.choice([None, draw.random()])
            if draw.random() < 0.7:
                for gone in doomed([Candidate(*pair) for pair in present.items()], rules):
                    del present[gone]
            assert step in present
            ranked = sorted((value, at) for at, value in seen.items() if value is not None)[::-1][:best]
            assert {at for _, at in ranked} <= set(present)
            assert {at for at in seen if every is not None and at % every == 0} <= set(present)
            assert set(sorted(seen)[-last:]) <= set(present)


def test_no_checkpoint_nothing_to_delete() -> None:
    assert doomed([], Retention(1)) == []
