"""One record per optimizer step, written to every logger at once."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import lightning as L

from distill.callbacks.steps import StepCallback
from distill.errors import RunError

log = logging.getLogger(__name__)

KEYS = ("tokens", "tokens_per_second", "time/step", "time/rollout")
"""Keys this callback adds to what the module and other callbacks recorded."""


RARE = (
    *("eval/", "sparsity", "update", "origin/", "geometry/", "optimizer/", "subspace/", "mask/", "extrapolation/"),
    "gradient_variance/",
)
"""Measurements that are not taken at every step: a step that has one is always written."""


class Metrics(StepCallback):
    """Drains the module's metrics after each step and hands them to the loggers every ``every_n_steps``.

    ``tokens`` counts target tokens since the run began and ``time`` seconds of training, both over all attempts.
    ``rollout_seconds`` is a clock the caller adds the duration of rollouts to. ``current`` are the metrics of the step
    just taken, ``latest`` the last value of every metric.
    """

    def __init__(self, every_n_steps: int, rollout_seconds: Clock) -> None:
        self.every_n_steps, self.rollout_seconds = every_n_steps, rollout_seconds
        self.tokens, self.seconds = 0, 0.0
        self.latest: dict[str, float] = {}
        self.current: dict[str, float] = {}
        self._since = 0.0
        self._empty = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self.current = pl_module.drain_metrics()
            self._write(trainer, 0, self.current)
        self._since = time.perf_counter()

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        positions = pl_module.positions
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        self.seconds += elapsed
        if positions == 0 and trainer.is_global_zero and not self._empty:
            log.warning("step %d had no target to learn from, and there may be more such steps", step)
            self._empty = True
        self.tokens += positions
        metrics = pl_module.drain_metrics()
        if math.isnan(metrics.get("teacher_nll", 0.0)):
            raise RunError(
                f"The teacher's logits are NaN (`teacher_nll` at step {step}); the last checkpoint is intact."
            )
        for name in ("loss", "grad_norm"):
            if not _finite(metrics[name]):
                raise RunError(f"`{name}` is {metrics[name]} at step {step}; the last checkpoint is intact.")
        metrics |= {
            "tokens": float(self.tokens),
            "tokens_per_second": positions / elapsed,
            "time/step": elapsed,
            "time/rollout": self.rollout_seconds.take(),
        }
        self.latest |= metrics
        self.current = metrics
        due = step % self.every_n_steps == 0 or step >= trainer.max_steps
        if due or any(name.startswith(RARE) for name in metrics):
            self._write(trainer, step, metrics)

    def _write(self, trainer: L.Trainer, step: int, metrics: dict[str, float]) -> None:
        self.latest |= metrics
        if metrics and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({"time": round(self.seconds, 3), **metrics}, step)

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]


class Clock:
    """Accumulates seconds between reads."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        self._seconds += seconds

    def take(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _finite(value: float) -> bool:
    return value - value == 0
