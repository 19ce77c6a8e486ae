"""The section ``callbacks`` of a run: what is measured, saved and enforced while it trains."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from distill.config.strict import Positive, Strict


class SparsityCallback(Strict):
    every_n_steps: Positive = 50
    origin: str | None = Field(None, description="a folder of weights: the student is compared with them, too")
    since_last: bool = Field(True, description="compare with the last measurement, too: its weights stay on disk")


class EvaluationCallback(Strict):
    """Greedy accuracy and student-teacher KL on held-out prompts; without ``every_n_steps`` at start and end only."""

    every_n_steps: Positive | None = None
    samples: int = Field(8, ge=0, description="rollouts written to samples.jsonl at each evaluation")


class RolloutsCallback(Strict):
    """Sequences that were trained on, as text; of rollouts only."""

    every_n_steps: Positive = 50
    samples: Positive = Field(4, description="rows written to rollouts.jsonl at step 1, every N steps and the last")


class CheckpointCallback(Strict):
    """Kept are the last, the best by ``monitor`` and milestones; the rest is deleted."""

    every_n_steps: Positive = 100
    keep_last: Positive = 2
    keep_best: int = Field(0, ge=0)
    monitor: str | None = Field(None, description="a metric, such as eval/accuracy; for keep_best")
    mode: Literal["min", "max"] = Field("max", description="whether monitor is better smaller or larger")
    keep_every_n_steps: Positive | None = Field(None, description="milestones, kept for good")


class GeometryCallback(Strict):
    """Spectrum of the update and its place among the source's principal directions, beside a rounding null."""

    every_n_steps: Positive = 100
    matrices: Positive | Literal["all"] = Field(7, description="how many are drawn, evenly over kinds of modules; all")


class OptimizerStateCallback(Strict):
    """Gradient against first moment, and the spread of the second: what the optimizer makes of the gradients."""

    every_n_steps: Positive = 10


class GradientSubspaceCallback(Strict):
    """Gradients of matrices projected on the subspace of the early update: the top ``rank`` singular vectors of Δ."""

    warmup_steps: Positive = Field(description="optimizer steps without the projection; Δ is taken after the last")
    rank: Positive = 16
    side: Literal["right", "both"] = Field("right", description="singular vectors of which side the gradient keeps")
    every_n_steps: Positive = Field(10, description="between looks at what the projection keeps and what leaks")


class ExtrapolationCallback(Strict):
    """After steps 1, 2, 4 …: attention and MLP weights move on along their update while a score gets better."""

    candidates: Positive = Field(5, description="θ_base + (1 + 2k)(θ - θ_base) is tried for k = 1 … candidates")
    examples: Positive = Field(50, description="training rows, always the same, that the score is taken on")


class GradientVarianceCallback(Strict):
    """Variance of the gradients of cross-entropy and of KD, and the mixture of both that follows."""

    every_n_steps: Positive = 100
    blocks: int = Field(8, ge=3, description="parts of a step's samples whose gradients are compared")
    sketch: int = Field(65_521, ge=2, description="numbers kept of a gradient; errors are √(2/sketch), primes are best")
    horizon: float | None = Field(None, gt=0, description="steps over which noise averages out; trainer.max_steps")


class FeatureMapsCallback(Strict):
    """Pictures of where student and teacher agree, over held-out images; with the section ``adm``."""

    every_n_steps: Positive = 100
    images: Positive = 6


class CollapseCallback(Strict):
    """Stops a run whose teacher's adapter has left its base behind; of co-trained networks with ``lora`` alone.

    The first limit is ln 2: the likelihood that the teacher gives a held-out token, in the geometric mean, is half of
    the base's. The second: a token the teacher says is e³ ≈ 20 times less likely of the base.
    """

    every_n_steps: Positive = 50
    max_ce_rise: float | None = Field(0.7, gt=0, description="nats of held-out CE above the base's; null: any")
    max_kl_to_base: float | None = Field(3.0, gt=0, description="nats of held-out KL(teacher‖its base); null: any")


class UpdateMaskCallback(Strict):
    """Trains the coordinates of a mask alone; all others keep every bit of the source weights."""

    path: str | None = Field(None, description="a mask file, made by distill mask")


class Component(BaseModel):
    """A user's own callback: an import path from the allow-list and its arguments."""

    model_config = ConfigDict(extra="allow")
    target: str = Field(alias="_target_")


class Callbacks(Strict):
    sparsity: SparsityCallback | None = SparsityCallback()
    evaluation: EvaluationCallback | None = EvaluationCallback()
    rollouts: RolloutsCallback | None = RolloutsCallback()
    checkpoint: CheckpointCallback | None = CheckpointCallback()
    geometry: GeometryCallback | None = None
    optimizer_state: OptimizerStateCallback | None = None
    gradient_subspace: GradientSubspaceCallback | None = None
    update_mask: UpdateMaskCallback | None = None
    extrapolation: ExtrapolationCallback | None = None
    gradient_variance: GradientVarianceCallback | None = None
    feature_maps: FeatureMapsCallback | None = None
    collapse: CollapseCallback | None = CollapseCallback()
    extra: dict[str, Component] = Field(default_factory=dict)
