"""When a callback acts: once per optimizer step, whatever the number of micro-batches."""

from __future__ import annotations

from contextlib import nullcontext

import lightning as L

from distill import distributed, watchdog


class StepCallback(L.Callback):
    """Calls :meth:`on_step` after each optimizer step with its number (1 for the first)."""

    label = "step"
    """The phase of :meth:`on_step`, as the watchdog calls it."""
    _last_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        # global_step moves only when the optimizer has stepped; micro-batches before that repeat the old number.
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            patient = distributed.patient_libraries() if self.label in watchdog.LONG else nullcontext()
            with watchdog.phase(self.label), patient:
                self.on_step(trainer, pl_module, trainer.global_step)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        raise NotImplementedError


def is_last(trainer: L.Trainer, step: int) -> bool:
    """True at the step after which training ends, planned or not."""
    return step >= trainer.max_steps or trainer.should_stop
