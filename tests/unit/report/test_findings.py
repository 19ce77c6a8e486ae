"""Sentences follow from the size of a difference and from how clear it is, never from z alone."""

from typing import Any

import pytest

from distill.report.analysis_folder import Cell
from distill.report.findings import (
    ABOVE,
    ALONE,
    BELOW,
    NEGLIGIBLE,
    SAME,
    SUBJECTS,
    UNDECIDED,
    distinct,
    findings,
    negligible,
    verdict,
)
from tests.unit.report.analysis_sample import summary


def beside(null: float, difference: float, spread: float | None) -> Cell:
    return Cell(null + difference, null, spread, difference, difference / spread if spread else None)


@pytest.mark.parametrize(
    ("cell", "draws", "share", "expected"),
    [
        (beside(0.80, 0.03, 0.001), 5, True, ABOVE),
        (beside(0.80, -0.03, 0.001), 5, True, BELOW),
        (beside(0.80, 0.004, 1e-6), 5, True, NEGLIGIBLE),
        (beside(0.80, 0.004, 0.01), 5, True, SAME),
        (beside(0.80, 0.0, 0.0), 5, True, SAME),
        (beside(0.80, 0.03, None), 1, True, UNDECIDED),
        (beside(0.80, 0.03, 0.02), 5, True, UNDECIDED),
        (beside(60.0, -36.0, 0.1), 3, False, BELOW),
        (beside(60.0, 2.0, 0.001), 3, False, NEGLIGIBLE),
        (beside(1.0, -0.5, 0.0), 3, True, BELOW),
        (Cell(0.8), 0, True, ALONE),
    ],
    ids=[
        "above",
        "below",
        "clear but small",
        "small",
        "equal",
        "one draw",
        "noisy",
        "rank",
        "rank close",
        "sd 0",
        "none",
    ],
)
def test_verdicts(cell: Cell, draws: int, share: bool, expected: str) -> None:
    assert verdict(cell, draws, share=share) == expected


def test_a_point_matters_where_shares_are_near_their_ends() -> None:
    assert negligible(0.80, 0.009, share=True)
    assert not negligible(0.99, 0.009, share=True)
    assert not negligible(0.008, 0.004, share=True)
    assert negligible(0.0, 0.0009, share=True)
    assert not negligible(0.0, 0.5, share=False)


def test_few_draws_ask_for_more_than_three_deviations() -> None:
    # 95 % prediction intervals of Student's t: 15.6, 5.0 and 3.0 deviations for 2, 3 and 5 draws.
    for draws, limit in ((2, 15.56), (3, 4.97), (5, 3.04)):
        assert not distinct(beside(0.5, 0.99 * limit, 1.0), draws)
        assert distinct(beside(0.5, -1.01 * limit, 1.0), draws)
    assert not distinct(beside(0.5, 100, None), 1)


def test_the_sentences_of_an_analysis() -> None:
    found = {one.key: one for one in findings(summary()) if one.precision == "bf16"}
    sparse = found["sparsity_1e-5"]
    assert sparse.claim == "More weights stayed where they were than rounding explains."
    assert sparse.numbers == ("did not move, |Δ| ≤ 1e-5: 82.4 %, null 80.0 % ± 0.08 (difference +2.4 points, z +30.0)")
    assert found["stable_rank.median"].claim == "The update is concentrated in fewer directions than a random one."
    assert found["stable_rank.median"].verdict == BELOW
    assert "z beyond −100" in found["stable_rank.median"].numbers
    assert found["rank_1e-6.median"].verdict == SAME
    # 0.8 % against 0.56 %: a quarter of a point, but nearly a third of the null.
    assert found["projection_joint_0.1.median"].claim == (
        "The update lies less within the source's main directions than a random one."
    )


def change(key: str, **values: float | None) -> dict[str, Any]:
    changed = summary()
    changed["metrics"]["bf16"][key] |= values
    return changed


def test_a_claim_is_about_the_null_not_about_chance() -> None:
    # More than rounding gives, and still less than chance: 1.
    changed = summary()
    cell = {"observed": 0.64, "null": 0.5, "null_sd": 1e-3, "difference": 0.14, "z": 140.0}
    changed["metrics"]["bf16"]["enrichment_principal_0.1_0"] = cell
    (found,) = (one for one in findings(changed) if one.key == "enrichment_principal_0.1_0" and one.precision == "bf16")
    assert found.claim.endswith("main directions moved more often than rounding makes them.")


def test_a_clear_difference_that_is_too_small_is_said_to_be() -> None:
    changed = change("sparsity_1e-5", observed=0.804, null=0.8, null_sd=1e-6, difference=0.004, z=4000.0)
    first = findings(changed)[0]
    assert first.verdict == NEGLIGIBLE
    assert first.claim == (
        "As many weights stayed where they were as rounding alone would leave: the difference is clear, but too small "
        "to matter."
    )
    assert first.numbers.endswith("null 80.0 % ± <0.01 (difference +0.40 points, z beyond +100)")


def test_one_draw_and_no_draw_are_said_to_be() -> None:
    (first, *_) = findings(summary(draws=1))
    assert first.claim == (
        "Perhaps more weights stayed where they were than rounding explains: a single draw of the null does not tell "
        "its spread."
    )
    assert "± ?" in first.numbers
    assert {one.verdict for one in findings(summary(draws=0))} == {ALONE}
    assert findings(summary(draws=0))[0].claim == "Did not move, |Δ| ≤ 1e-5: 82.4 %."


def test_what_was_not_measured_has_no_sentence() -> None:
    keys = {one.key for one in findings(summary(matrices=False))}
    assert "sparsity_1e-5" in keys
    assert not any(key.endswith(".median") for key in keys)
    assert findings({}) == []
    assert "observed_over_expected_1e-5" in {one.key for one in findings(summary(other=True))}


def test_an_update_of_zero_has_nothing_to_find() -> None:
    same = summary()
    same["metrics"]["bf16"]["relative_norm"]["observed"] = 0.0
    assert findings(same), "moved in fp32 only"
    same["metrics"]["fp32"]["relative_norm"]["observed"] = 0.0
    assert findings(same) == []


def test_claims_are_three_different_sentences() -> None:
    for claims in SUBJECTS.values():
        assert len(set(claims)) == 3
        assert not any(claim.endswith(".") for claim in claims)
