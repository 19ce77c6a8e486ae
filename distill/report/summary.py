"""The numbers at the top of a report: what a run achieved, from its record."""

from __future__ import annotations

from dataclasses import dataclass

from distill.analysis.comparable import caveat
from distill.report.collect import RunRecord


@dataclass(frozen=True)
class Summary:
    """Accuracies and shares are in [0, 1], ``seconds`` are of training, ``gap`` is the share of the distance to the
    teacher's accuracy that was closed; None is what the run did not measure."""

    before: float | None
    after: float | None
    teacher: float | None
    kl_before: float | None
    kl_after: float | None
    loss: float | None
    sparsity: float | None
    sparsity_fp32: float | None
    relative_norm: float | None
    relative_norm_fp32: float | None
    seconds: float
    steps: int
    planned: int | None

    @property
    def gap(self) -> float | None:
        if self.before is None or self.after is None or self.teacher is None or self.teacher <= self.before:
            return None
        return (self.after - self.before) / (self.teacher - self.before)

    @property
    def status(self) -> str:
        if self.planned is None:
            return f"{self.steps} steps"
        if self.steps >= self.planned:
            return f"finished, {self.steps} steps"
        return f"stopped or running, {self.steps} of {self.planned} steps"

    @property
    def caveat(self) -> str | None:
        """Why the sparsity cannot be compared with published tables, if it cannot."""
        return None if self.relative_norm_fp32 is None else caveat(self.relative_norm_fp32)

    @property
    def headline(self) -> str:
        """``student 3.1 % → 88.2 %, teacher 97.0 %, 91 % of the gap closed in 140 s``."""
        if self.before is not None and self.after is not None:
            parts = [f"student {percent(self.before)} → {percent(self.after)}"]
            parts += [] if self.teacher is None else [f"teacher {percent(self.teacher)}"]
        elif self.kl_before is not None and self.kl_after is not None:
            parts = [f"KL to the teacher {number(self.kl_before)} → {number(self.kl_after)}"]
        elif self.loss is not None:
            parts = [f"loss {number(self.loss)}"]
        else:
            return "nothing measured yet"
        took = f"in {duration(self.seconds)}"
        last = took if self.gap is None else f"{100 * self.gap:.0f} % of the gap closed {took}"
        return ", ".join([*parts, last])


def summarise(run: RunRecord) -> Summary:
    """The summary of one run."""
    return Summary(
        before=run.first("eval/accuracy"),
        after=run.last("eval/accuracy"),
        teacher=run.last("eval/teacher_accuracy"),
        kl_before=run.first("eval/reverse_kl"),
        kl_after=run.last("eval/reverse_kl"),
        loss=run.last("loss"),
        sparsity=run.last("sparsity/bf16/1e-5"),
        sparsity_fp32=run.last("sparsity/fp32/1e-5"),
        relative_norm=run.last("update/relative_norm"),
        relative_norm_fp32=run.last("update/relative_norm_fp32"),
        seconds=run.seconds,
        steps=run.last_step,
        planned=run.planned_steps,
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """Three digits; below a hundredth as ``7.8e-4``."""
    if value is None or value == 0 or abs(value) >= 0.01:
        return "–" if value is None else f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def count(value: float | None) -> str:
    """``12,345``; below a hundred with three digits."""
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """``9.5 s``, ``140 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 300:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
