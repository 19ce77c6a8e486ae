"""Ctrl-C and SIGTERM: finish the step, save, stop."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import lightning as L

from distill import distributed
from distill.callbacks.steps import StepCallback


class Interrupt(StepCallback):
    """Turns SIGINT and SIGTERM on any rank into a stop that every rank agrees on after the current optimizer step.

    The handler only sets a flag: saving or communicating inside a signal handler deadlocks when ranks are signalled at
    different moments. A second Ctrl-C stops at once. ``received`` is the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # After Lightning has installed its own SIGTERM handler, which broadcasts inside the handler.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        self.received = distributed.all_max(self.received)
        if self.received:
            trainer.should_stop = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        name = signal.Signals(number).name
        print(f"{name}: finishing this step, then saving and stopping.", file=sys.stderr, flush=True)
