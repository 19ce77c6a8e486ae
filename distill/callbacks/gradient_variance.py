"""How noisy the cross-entropy gradient is, and what the teacher would take off it, every N optimizer steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import lightning as L
import torch

from distill import watchdog
from distill.analysis.variance import Blocks, Moments, mean, moments, sketch_error, spread
from distill.callbacks.steps import StepCallback
from distill.errors import UserError

KEYS = (
    "gradient_variance/ce",
    "gradient_variance/kd",
    "gradient_variance/corrected",
    "gradient_variance/teacher",
    "gradient_variance/bias",
    "gradient_variance/cosine",
    "gradient_variance/correlation",
    "gradient_variance/lambda",
    "gradient_variance/lambda_unclamped",
    "gradient_variance/lambda_se",
    "gradient_variance/lambda_mean",
    "gradient_variance/lambda_upper",
    "gradient_variance/lambda_upper_se",
    "gradient_variance/reduction",
    "gradient_variance/reduction_se",
    "gradient_variance/sketch_error",
    "gradient_variance/positions",
    "time/gradient_variance",
)
"""Keys recorded before the first step and every N steps, of the next step's gradient at the weights it starts from.
Traces of covariances: of the CE gradient, of the KD gradient, of (1-λ)·CE + λ·KD at the predicted λ, of their
difference d. Then ‖E d‖², the cosine of the step's CE and KD gradients, the correlation of the noises of CE and d; the
predicted λ, within [0, 1] and without these limits, and that of the mean of all measurements so far; the λ that
minimises the variance alone, and the share of CE's variance that is left at the predicted λ; standard errors, those of
λs without their limits; the sketch's relative standard error, the targets of the step, and the seconds it took."""
KEY = "callbacks.gradient_variance"


class GradientVariance(StepCallback):
    """Records :data:`KEYS`. ``measure`` is a collective that takes the device and returns the blocks of the next step,
    None where too few of its samples have a completion; ``horizon`` is that of ``Moments.best``.

    The next step's samples have not been trained on by these weights' last step, so that the gradient of CE is that of
    fresh data.
    """

    label = "gradient_variance"

    def __init__(self, measure: Callable[[torch.device], Blocks | None], *, every_n_steps: int, horizon: float) -> None:
        self.measure, self.every_n_steps, self.horizon = measure, every_n_steps, horizon
        self._found: list[Moments] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measures, too, where training begins. Raises UserError where there is nothing to measure on."""
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            with watchdog.phase(self.label):
                if not self._record(pl_module):
                    raise UserError(KEY, {"every_n_steps": self.every_n_steps}, "null for data without completions")

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if step % self.every_n_steps == 0:
            self._record(pl_module)

    def _record(self, pl_module: Any) -> bool:
        began = time.perf_counter()
        blocks = self.measure(pl_module.device)
        if blocks is not None:
            self._found.append(moments(blocks))
            together = {"gradient_variance/lambda_mean": mean(self._found).best(self.horizon)}
            found = metrics(blocks, self.horizon) | together
            pl_module.record(found | {"time/gradient_variance": time.perf_counter() - began})
        return blocks is not None

    def state_dict(self) -> dict[str, Any]:
        return {"found": [asdict(one) for one in self._found]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._found = [Moments(**one) for one in state_dict["found"]]


def metrics(blocks: Blocks, horizon: float) -> dict[str, float]:
    """The numbers of :data:`KEYS` that one measurement gives, all but the time."""
    found, errors = moments(blocks), spread(blocks, horizon)
    best = found.best(horizon)
    left = found.corrected(best)
    values = {
        "ce": found.ce,
        "kd": found.corrected(1.0),
        "corrected": left,
        "teacher": found.teacher,
        "bias": found.bias,
        "cosine": found.cosine,
        "correlation": found.correlation,
        "lambda": best,
        "lambda_unclamped": found.unclamped(horizon),
        "lambda_upper": found.best(0.0),
        "reduction": left / found.ce if found.ce > 0 else 1.0,
        **{f"{name}_se": error for name, error in errors.items()},
        "sketch_error": sketch_error(blocks),
        "positions": float(blocks.counts.sum()),
    }
    return {f"gradient_variance/{name}": value for name, value in values.items()}
