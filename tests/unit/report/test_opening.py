"""The top of the page answers for somebody who has not read the paper: compared, how far, how many, rounding."""

from typing import Any

import pytest

from distill.analysis.comparable import caveat
from distill.report.findings import findings
from distill.report.opening import headline, notes, paragraphs
from tests.unit.report.analysis_sample import summary


def told(found: dict[str, Any]) -> str:
    return " ".join(paragraphs(found, findings(found)))


def with_sparsity(observed: float, null: float, sd: float) -> dict[str, Any]:
    changed = summary()
    changed["metrics"]["bf16"]["sparsity_1e-5"] = {
        "observed": observed,
        "null": null,
        "null_sd": sd,
        "difference": observed - null,
        "z": None,
    }
    return changed


def test_the_whole_summary() -> None:
    found = summary()
    assert headline(found) == "82.4 % of the weights did not move; rounding alone would leave 80.0 %"
    text = told(found)
    assert "134,515,008 weights in 272 tensors" in text
    assert "the weights moved by 0.09 % of their own length (‖Δ‖/‖θ₀‖: 9.0e-4 in bf16, 9.0e-4 in fp32)" in text
    assert "82.4 % in bf16 and 82.4 % in fp32 (78.0 % are bit-identical in bf16)" in text
    assert "leave 80.0 % unmoved too. Yes: +2.4 points." in text
    assert (
        "Of 9 quantities looked at in bf16, 4 differ from the null clearly and by enough to matter, 5 do not." in text
    )


@pytest.mark.parametrize(
    ("observed", "sd", "answer"),
    [
        (0.70, 0.001, "No, it is less: −10.0 points."),
        (0.8001, 0.001, "No: there is no difference to speak of."),
        (0.804, 1e-6, "Hardly: +0.40 points are clear, but too little to matter."),
        (0.85, 0.03, "Perhaps: +5.0 points, but the draws of the null cannot tell."),
    ],
)
def test_whether_rounding_explains_it(observed: float, sd: float, answer: str) -> None:
    assert answer in told(with_sparsity(observed, 0.8, sd))


def test_a_difference_that_comes_from_one_group_is_said_to() -> None:
    def group(observed: float) -> dict[str, Any]:
        beside = {"observed": observed, "null": 0.7, "null_sd": 1e-4, "difference": observed - 0.7, "z": None}
        return {"bf16": {"sparsity_1e-5": beside}}

    found = summary()
    assert "By group" not in told(found)
    found["groups"] = {"attention": group(0.69), "mlp": group(0.699), "embedding": group(0.8)}
    assert (
        "By group, observed − null is +10.0 points in embedding, −1.0 points in attention, −0.10 points in mlp: not "
        "the same everywhere."
    ) in told(found)
    found["groups"] = {"attention": group(0.75), "mlp": group(0.76)}
    assert "is +6.0 points in mlp, +5.0 points in attention." in told(found)
    found["groups"] = {"attention": group(0.75)}
    assert "By group" not in told(found)


def test_without_a_null_nothing_is_explained() -> None:
    found = summary(draws=0)
    assert headline(found) == "82.4 % of the weights did not move"
    assert "No null was drawn" in told(found)
    assert "quantities looked at" not in told(found)


def test_without_any_metric() -> None:
    found = {"tensors": 1, "parameters": 7}
    assert headline(found) == "1 tensor compared"
    assert "7 weights in 1 tensor." in told(found)


def test_equal_models_are_said_to_be() -> None:
    found = summary()
    for precision in ("bf16", "fp32"):
        found["metrics"][precision]["relative_norm"] = {"observed": 0.0, "null": 0.0}
    assert headline(found) == "No weight moved"
    assert told(found).endswith("No weight moved at all: the weights compared are the same, bit by bit.")
    assert notes(found | {"notes": [str(caveat(0.0)), "another"]}) == ["another"]


def test_an_update_of_unusual_size_is_warned_of_once() -> None:
    found = summary()
    assert notes(found) == []
    found["metrics"]["fp32"]["relative_norm"]["observed"] = 0.05
    (note,) = notes(found)
    assert "5.0e-2 (fp32) is outside 3e-4…1.5e-3" in note
    assert notes(found | {"notes": [note]}) == [note]
    assert notes(found | {"notes": ["another"]}) == [note, "another"]
