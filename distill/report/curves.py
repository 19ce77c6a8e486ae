"""Which curves a report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from distill.report.bands import band, band_chart
from distill.report.charts import Line, line_chart
from distill.report.collect import RunRecord
from distill.report.groups import Group


class Chart(NamedTuple):
    title: str
    svg: str
    note: str = ""


ACCURACY = "Accuracy on held-out prompts"
MIOU = "Mean intersection over union on held-out images"
KL = "KL on the student's own rollouts, nats per token"
PERPLEXITY = "Perplexity of held-out completions"
SPARSITY = "Update sparsity: share of weights with |Δ| ≤ 1e-5"
NORM = "Relative update norm ‖Δ‖/‖θ₀‖"
LOSS = "Loss per target token"
COMPARED = {
    ACCURACY: "eval/accuracy",
    MIOU: "eval/miou",
    LOSS: "loss",
    KL: "eval/reverse_kl",
    f"{SPARSITY}, bf16": "sparsity/bf16/1e-5",
    f"{NORM}, bf16": "update/relative_norm",
    "Gradient norm before clipping": "grad_norm",
    "Entropy of the student, nats per token": "student_entropy",
    "Tokens per second": "tokens_per_second",
}
"""Curves of several runs: title → metric."""


def of_one(run: RunRecord) -> list[Chart]:
    """The curves of one run, those without a measurement left out."""
    loss, divergence = run.series("loss"), run.setting("objective", "divergence") or "divergence"
    teacher = [Line("teacher", run.series("eval/teacher_accuracy"), reference=True)]
    teacher_miou = Line("teacher", run.series("eval/teacher_miou"), reference=True)
    # With one term of weight 1 its curve is the loss itself.
    terms = [line for line in _lines(run, {divergence: divergence, "ce": "cross-entropy"}) if line.points != loss]
    sparsity = {"sparsity/bf16/1e-5": "bf16", "sparsity/fp32/1e-5": "fp32", "sparsity/bf16/0": "bf16, exactly 0"}
    norms = {"update/relative_norm": "bf16", "update/relative_norm_fp32": "fp32"}
    kl = {"eval/reverse_kl": "KL(student ‖ teacher)", "eval/forward_kl": "KL(teacher ‖ student)"}
    drawn = {
        ACCURACY: line_chart(ACCURACY, [*_lines(run, {"eval/accuracy": "student"}), *teacher], percent=True),
        MIOU: line_chart(MIOU, [*_lines(run, {"eval/miou": "student"}), teacher_miou], percent=True),
        LOSS: line_chart(LOSS, [Line("loss", loss), *terms]),
        KL: line_chart(KL, _lines(run, kl)),
        PERPLEXITY: line_chart(PERPLEXITY, _lines(run, {"eval/perplexity": "student"})),
        SPARSITY: line_chart(SPARSITY, _lines(run, sparsity), percent=True),
        NORM: line_chart(NORM, _lines(run, norms)),
        "Tokens per second": line_chart("Tokens per second", _lines(run, {"tokens_per_second": "tokens/s"})),
    }
    return _present(drawn)


def of_groups(groups: Sequence[Group], loss_note: str | None = None) -> list[Chart]:
    """The same curve of each group in one chart, in colours and letters the page explains once."""
    charts = []
    last_step = max(1, *(run.record.last_step for group in groups for run in group.runs))
    for title, key in COMPARED.items():
        bands = [found for group in groups if (found := band(group, key)) is not None]
        if bands:
            svg = band_chart(
                title, bands, last_step, percent=key.startswith(("eval/accuracy", "eval/miou", "sparsity/"))
            )
            stretch = max(found.stretch for found in bands)
            averaged = f"Each point is the mean of up to {stretch} records." if stretch > 1 else None
            notes = [note for note in (loss_note if title == LOSS else None, averaged) if note]
            charts.append(Chart(title, svg, " ".join(notes)))
    return charts


def _lines(run: RunRecord, labels: Mapping[str, str]) -> list[Line]:
    return [Line(label, run.series(key)) for key, label in labels.items()]


def _present(drawn: Mapping[str, str | None]) -> list[Chart]:
    return [Chart(title, svg) for title, svg in drawn.items() if svg is not None]
