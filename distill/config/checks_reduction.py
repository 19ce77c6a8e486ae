"""Checks of variance_reduction: what the method is defined for, and what it cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import checks_images, schema
from distill.config.problem import Problem

SECTION = "variance_reduction"
WHY = f"with {SECTION}"


def variance_reduction(config: schema.TrainConfig) -> Iterator[Problem]:
    part = config.variance_reduction
    if part is None:
        return
    weights = config.objective.label_weight, config.objective.logit_weight
    wanted: tuple[tuple[str, object, bool, str], ...] = (
        ("task.name", config.task.name, config.task.name == checks_images.TASK, f"{checks_images.TASK!r} {WHY}"),
        ("teacher.kind", config.teacher.kind, config.teacher.kind == "frozen", f"'frozen' {WHY}: its gradient counts"),
        ("objective.label_weight", weights[0], weights[0] == 1, f"1 {WHY}, whose objective is cross-entropy"),
        ("objective.logit_weight", weights[1], weights[1] == 0, f"0 {WHY}, whose teacher gives gradients, no logits"),
        (
            "optimizer.name",
            config.optimizer.name,
            config.optimizer.name == "sgd",
            f"'sgd' {WHY}: weight decay is f's ℓ2",
        ),
        ("trainer.precision", config.trainer.precision, config.trainer.precision == "32-true", f"'32-true' {WHY}"),
        (
            "teacher.dtype",
            config.teacher.dtype,
            config.teacher.dtype == config.student.dtype,
            f"{config.student.dtype!r} {WHY}, as student.dtype is",
        ),
        (
            "trainer.strategy",
            config.trainer.strategy,
            config.trainer.strategy in ("single", "ddp"),
            f"'single' or 'ddp' {WHY}: gradients are taken at whole weights",
        ),
        (
            "callbacks.gradient_subspace",
            "given",
            config.callbacks.gradient_subspace is None,
            f"null {WHY}: the teacher's gradient would be confined as well",
        ),
    )
    for key, value, holds, allowed in wanted:
        if not holds:
            yield Problem((key, SECTION), value, allowed)
    if part.unbiased and (config.data.pad_crop or config.data.flip):
        key = "pad_crop" if config.data.pad_crop else "flip"
        allowed = (
            f"{0 if config.data.pad_crop else 'false'} with {SECTION}.unbiased: ∇f(θ) is that of the images as they are"
        )
        yield Problem((f"data.{key}", f"{SECTION}.unbiased"), getattr(config.data, key), allowed)
