"""The section ``variance_reduction`` of a run: how much of the teacher's gradient is taken off the student's."""

from __future__ import annotations

from pydantic import Field

from distill.config.strict import Fraction, Positive, Strict


class VarianceReduction(Strict):
    """KD as partial variance reduction: x⁺ = x − γ·(∇f_ξ(x) − λ·∇f_ξ(θ)), θ the teacher (docs/kd_variance.md)."""

    weight: Fraction = Field(0.5, description="λ, the share of the teacher's gradient")
    unbiased: bool = Field(False, description="add λ·∇f(θ), the teacher's gradient over the whole training data")
    refresh_every_n_steps: Positive | None = Field(
        None, description="the student becomes the teacher every so many optimizer steps; null: never"
    )
