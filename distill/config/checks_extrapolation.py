"""Checks of callbacks.extrapolation: what it cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from distill.config import schema
from distill.config.problem import Problem

SECTION = "callbacks.extrapolation"


def extrapolation(config: schema.TrainConfig) -> Iterator[Problem]:
    part = config.callbacks.extrapolation
    if part is None:
        return
    if config.student.lora is not None:
        allowed = "null with student.lora: to extrapolate both factors of an adapter is not to extrapolate the weights"
        yield Problem((SECTION, "student.lora"), part.model_dump(), allowed)
    if config.callbacks.gradient_subspace is not None:
        allowed = "null with callbacks.gradient_subspace, which says itself where the weights go"
        yield Problem((SECTION, "callbacks.gradient_subspace"), part.model_dump(), allowed)
