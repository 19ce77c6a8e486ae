"""Headline and formats."""

from dataclasses import replace
from pathlib import Path

import pytest

from distill.report.collect import collect
from distill.report.summary import duration, number, percent, summarise


def test_headline_of_a_finished_run(run_dir: Path) -> None:
    summary = summarise(collect(run_dir))
    assert summary.headline == "student 3.1 % → 88.2 %, teacher 97.0 %, 91 % of the gap closed in 140 s"
    assert summary.status == "finished, 4 steps"
    assert summary.caveat is None


def test_headline_says_only_what_was_measured(run_dir: Path) -> None:
    summary = summarise(collect(run_dir))
    assert replace(summary, teacher=None).headline == "student 3.1 % → 88.2 %, in 140 s"
    assert replace(summary, teacher=0.01).gap is None
    assert replace(summary, after=None).headline == "KL to the teacher 1.5 → 0.05, in 140 s"
    assert replace(summary, after=None, kl_after=None).headline == "loss 0.5, in 140 s"
    assert replace(summary, after=None, kl_after=None, loss=None).headline == "nothing measured yet"
    assert replace(summary, steps=3).status == "stopped or running, 3 of 4 steps"
    assert replace(summary, planned=None).status == "4 steps"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.0, "0"), (0.5, "0.5"), (12.345, "12.3"), (0.000778, "7.8e-4"), (-0.002, "-2.0e-3")],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_percent_and_duration() -> None:
    assert (percent(None), percent(0.8824)) == ("–", "88.2 %")
    assert [duration(s) for s in (9.512, 140.2, 720, 12_000)] == ["9.51 s", "140 s", "12 min", "3 h 20 min"]
