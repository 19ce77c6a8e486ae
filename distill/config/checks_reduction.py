"""Checks of variance_reduction: what the method is defined for, and what it cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import schema
from distill.config.problem import Problem

SECTION = "variance_reduction"
WHY = f"with {SECTION}"


def variance_reduction(config: schema.TrainConfig) -> Iterator[Problem]:
    part, data = config.variance_reduction, config.data
    if part is None:
        return
    for key, value, holds, allowed in (*_learned(config), *_trained(config)):
        if not holds:
            yield Problem((key, SECTION), value, allowed)
    for name, value, off in (("pad_crop", data.pad_crop, "0"), ("flip", data.flip, "false")):
        if part.unbiased and value:
            allowed = f"{off} with {SECTION}.unbiased: ∇f(θ) is that of the images as they are"
            yield Problem((f"data.{name}", f"{SECTION}.unbiased"), value, allowed)


def _learned(config: schema.TrainConfig) -> Iterator[tuple[str, object, bool, str]]:
    """Key, its value, whether that is possible, what is: of what is learned from whom."""
    teacher, part = config.teacher, config.objective
    yield "teacher.kind", teacher.kind, teacher.kind == "frozen", f"'frozen' {WHY}: its gradient counts"
    same = f"{config.student.dtype!r} {WHY}, as student.dtype is"
    yield "teacher.dtype", teacher.dtype, teacher.dtype == config.student.dtype, same
    label, logit = part.label_weight, part.logit_weight
    yield "objective.label_weight", label, label == 1, f"1 {WHY}, whose objective is cross-entropy"
    yield "objective.logit_weight", logit, logit == 0, f"0 {WHY}, whose teacher gives gradients, no logits"


def _trained(config: schema.TrainConfig) -> Iterator[tuple[str, object, bool, str]]:
    """Likewise, of how it is trained."""
    name, precision, strategy = config.optimizer.name, config.trainer.precision, config.trainer.strategy
    yield "optimizer.name", name, name == "sgd", f"'sgd' {WHY}: weight decay is f's ℓ2"
    yield "trainer.precision", precision, precision == "32-true", f"'32-true' {WHY}"
    whole = f"'single' or 'ddp' {WHY}: gradients are taken at whole weights"
    yield "trainer.strategy", strategy, strategy in ("single", "ddp"), whole
    subspace = config.callbacks.gradient_subspace
    allowed = f"null {WHY}: the teacher's gradient would be confined as well"
    yield "callbacks.gradient_subspace", subspace and subspace.model_dump(), subspace is None, allowed
