"""Checks of callbacks.gradient_variance: what it needs, and what it cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import schema
from distill.config.problem import Problem

SECTION = "callbacks.gradient_variance"


def gradient_variance(config: schema.TrainConfig) -> Iterator[Problem]:
    part = config.callbacks.gradient_variance
    if part is None:
        return
    if config.teacher.kind == "none":
        allowed = "null without a teacher: it compares the gradient of cross-entropy with that of KD"
        yield Problem((SECTION, "teacher.kind"), part.model_dump(), allowed)
    if config.callbacks.gradient_subspace is not None:
        allowed = "null with callbacks.gradient_subspace, which changes gradients on their way"
        yield Problem((SECTION, "callbacks.gradient_subspace"), part.model_dump(), allowed)
    prompts = config.data.batch_size // config.rollout.samples_per_prompt
    if part.blocks > prompts:
        allowed = f"at most {prompts}, the prompts of a step (data.batch_size / rollout.samples_per_prompt)"
        yield Problem((f"{SECTION}.blocks", "data.batch_size", "rollout.samples_per_prompt"), part.blocks, allowed)
