"""The section ``lora`` of a network that is trained: of the student, and of networks trained with it."""

from __future__ import annotations

from pydantic import Field

from distill.config.strict import Fraction, Positive, Strict


class Lora(Strict):
    """A LoRA adapter on a model, trained instead of its weights and merged on export."""

    r: Positive = 16
    alpha: float = Field(32.0, gt=0)
    dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"
