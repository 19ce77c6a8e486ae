"""What a study prints: arms, pairs by seed, and differences of such differences."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.studies.__main__ import NAMES
from benchmarks.studies.harness import ACCURACY, Study, gains, slug, tell

RESULTS = {
    "few": {0: 0.5, 1: 0.7},
    "few kd": {0: 0.6, 1: 0.9},
    "many": {0: 0.8, 1: 0.8},
    "many kd": {0: 0.8, 1: 0.9, 2: 1.0},
}
STUDY = Study(
    question="Does it help?",
    arms=dict.fromkeys(RESULTS, ()),
    pairs=(("few kd", "few", "it helps"),),
    contrasts={"less with more": (("few kd", "few"), ("many kd", "many"))},
)


def test_differences_are_of_equal_seeds() -> None:
    found = gains(RESULTS, ("many kd", "many"))
    assert {seed: round(value, 12) for seed, value in found.items()} == {0: 0.0, 1: 0.1}


def test_tables_have_arms_pairs_and_contrasts() -> None:
    lines = tell(STUDY, ACCURACY, RESULTS).splitlines()
    assert next(line for line in lines if line.startswith("| few kd |")).startswith("| few kd | 2 | 75 % |")
    assert next(line for line in lines if line.startswith("| it helps |")).startswith(
        "| it helps | few kd − few | +15 |"
    )
    assert next(line for line in lines if line.startswith("| less with")).startswith("| less with more | +10 |")


def test_without_contrasts_there_is_no_table_of_them() -> None:
    plain = Study(STUDY.question, STUDY.arms, STUDY.pairs)
    assert "difference of differences" not in tell(plain, ACCURACY, RESULTS)


@pytest.mark.parametrize("name", NAMES)
def test_arms_have_folders_of_their_own_and_pairs_are_of_arms(name: str) -> None:
    study: Study = importlib.import_module(f"benchmarks.studies.{name}").STUDY
    folders = [slug(arm) for arm in study.arms]
    assert len(set(folders)) == len(folders)
    assert all(folder.isascii() for folder in folders), "Hydra would want quotes"
    named = {arm for left, right, _ in study.pairs for arm in (left, right)}
    assert named <= set(study.arms)
