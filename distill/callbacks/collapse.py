"""Stops a run whose teacher's adapter has left its base behind (docs/online_lora.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L

from distill import distributed
from distill.callbacks.interrupt import fail
from distill.callbacks.steps import StepCallback

SECTION = "callbacks.collapse"
KEYS = ("eval/NAME_ce", "eval/NAME_kl_to_base")
"""Keys recorded of each network that learns through an adapter, in nats per held-out target token: its cross-entropy,
and KL(it‖its base)."""


@dataclass(frozen=True)
class Drift:
    """Means over held-out target tokens, in nats: −log p, that of the base (the adapter off), and KL(p‖p of the base).

    Equal on every rank.
    """

    ce: float
    base_ce: float
    kl: float

    def beyond(self, max_ce_rise: float | None, max_kl_to_base: float | None) -> Iterator[tuple[str, float, str]]:
        """End of the metric's name, value and limit, of what is above its limit or no number at all."""
        if max_ce_rise is not None and not self.ce <= self.base_ce + max_ce_rise:
            limit = f"{self.base_ce + max_ce_rise:.4g} ({self.base_ce:.4g} of its base + {SECTION}.max_ce_rise)"
            yield "ce", self.ce, limit
        if max_kl_to_base is not None and not self.kl <= max_kl_to_base:
            yield "kl_to_base", self.kl, f"{max_kl_to_base:.4g} ({SECTION}.max_kl_to_base)"


class Collapse(StepCallback):
    """Measures each network by ``measures`` at the start, every N steps and at the end, and records :data:`KEYS`.

    What is beyond a limit ends the run after the step, with a checkpoint; at the last step there is nothing to end.
    """

    def __init__(
        self,
        measures: Mapping[str, Callable[[], Drift]],
        every_n_steps: int,
        max_ce_rise: float | None = None,
        max_kl_to_base: float | None = None,
    ) -> None:
        self.measures, self.every_n_steps, self.limits = measures, every_n_steps, (max_ce_rise, max_kl_to_base)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self._look(pl_module)

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if step % self.every_n_steps and step < trainer.max_steps:
            return
        found = self._look(pl_module)
        # One rank's word: sums over ranks are equal, but a rank that went on alone would wait for ever.
        if distributed.all_max(int(bool(found))) and step < trainer.max_steps:
            why = "the teacher has collapsed (lower online.lr or online.logit_weight)"
            fail(trainer, f"{found} at step {step}: {why}.")

    def _look(self, pl_module: Any) -> str:
        """What is beyond its limit, in words; empty if nothing is."""
        said = []
        for name, measure in self.measures.items():
            drift = measure()
            pl_module.record({f"eval/{name}_ce": drift.ce, f"eval/{name}_kl_to_base": drift.kl})
            beyond = drift.beyond(*self.limits)
            said += [f"eval/{name}_{key} is {value:.4g}, above {limit}" for key, value, limit in beyond]
        return "; ".join(said)
