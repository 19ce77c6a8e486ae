"""Which curves a report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from distill.report.charts import Line, line_chart
from distill.report.collect import RunRecord


class Chart(NamedTuple):
    title: str
    svg: str


ACCURACY = "Accuracy on held-out prompts"
KL = "KL on the student's own rollouts, nats per token"
SPARSITY = "Update sparsity: share of weights with |Δ| ≤ 1e-5"
NORM = "Relative update norm ‖Δ‖/‖θ₀‖"
LOSS = "Loss per target token"
OVERLAID = {
    ACCURACY: "eval/accuracy",
    KL: "eval/reverse_kl",
    LOSS: "loss",
    f"{SPARSITY}, bf16": "sparsity/bf16/1e-5",
    f"{NORM}, bf16": "update/relative_norm",
}
"""Curves of several runs: title → metric."""


def of_one(run: RunRecord) -> list[Chart]:
    """The curves of one run, those without a measurement left out."""
    loss, divergence = run.series("loss"), run.setting("objective", "divergence") or "divergence"
    teacher = [Line("teacher", run.series("eval/teacher_accuracy"), reference=True)]
    # With one term of weight 1 its curve is the loss itself.
    terms = [line for line in _lines(run, {divergence: divergence, "ce": "cross-entropy"}) if line.points != loss]
    sparsity = {"sparsity/bf16/1e-5": "bf16", "sparsity/fp32/1e-5": "fp32", "sparsity/bf16/0": "bf16, exactly 0"}
    norms = {"update/relative_norm": "bf16", "update/relative_norm_fp32": "fp32"}
    kl = {"eval/reverse_kl": "KL(student ‖ teacher)", "eval/forward_kl": "KL(teacher ‖ student)"}
    drawn = {
        ACCURACY: line_chart(ACCURACY, [*_lines(run, {"eval/accuracy": "student"}), *teacher], percent=True),
        LOSS: line_chart(LOSS, [Line("loss", loss), *terms]),
        KL: line_chart(KL, _lines(run, kl)),
        SPARSITY: line_chart(SPARSITY, _lines(run, sparsity), percent=True),
        NORM: line_chart(NORM, _lines(run, norms)),
        "Tokens per second": line_chart("Tokens per second", _lines(run, {"tokens_per_second": "tokens/s"})),
    }
    return _present(drawn)


def of_several(runs: Sequence[RunRecord]) -> list[Chart]:
    """The same curve of each run in one chart, in colours the page explains once."""
    return _present(
        {
            title: line_chart(
                title,
                [Line(run.name, run.series(key)) for run in runs],
                percent=key.startswith(("eval/accuracy", "sparsity/")),
                legend=False,
            )
            for title, key in OVERLAID.items()
        }
    )


def _lines(run: RunRecord, labels: Mapping[str, str]) -> list[Line]:
    return [Line(label, run.series(key)) for key, label in labels.items()]


def _present(drawn: Mapping[str, str | None]) -> list[Chart]:
    return [Chart(title, svg) for title, svg in drawn.items() if svg is not None]
