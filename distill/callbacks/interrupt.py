"""Ctrl-C and SIGTERM: finish the step, save, stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L

from distill import distributed
from distill.callbacks.steps import StepCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_PRESS = 1.0
"""Seconds in which a repeated Ctrl-C is the same one: torchrun passes on what the terminal has sent to all already."""


class Interrupt(StepCallback):
    """Turns SIGINT and SIGTERM on any rank into a stop that every rank agrees on after the current optimizer step.

    The handler only sets a flag: saving or communicating inside a signal handler deadlocks when ranks are signalled at
    different moments. Before the first step there is nothing to save, and a signal stops at once, as a second Ctrl-C
    does. ``received`` is the signal's number, or 0. The first of the callbacks: the evaluation at the start takes long.
    """

    def __init__(self) -> None:
        self.received = 0
        self._training = False
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around ``trainer.fit``: takes the signals over, and gives them back.

        Raises:
            SystemExit: with 128 + the signal's number, after a stop at once.
        """
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        # SIGTERM later: while a process waits for the others to join, only its default can end it.
        self._listen(signal.SIGINT)
        try:
            yield
        except SystemExit:
            # Lightning's answer to the KeyboardInterrupt of the handler.
            if self.received:
                raise SystemExit(128 + self.received) from None
            raise
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Lightning's own handler of SIGTERM broadcasts inside the handler.
        self._listen(*SIGNALS)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training = True

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        self.received = distributed.all_max(self.received)
        if self.received:
            trainer.should_stop = True

    def _listen(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            if self._previous[number] != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received == number and time.monotonic() - self._at < SAME_PRESS:
            return
        again = self.received == number == signal.SIGINT
        self.received, self._at, name = number, time.monotonic(), signal.Signals(number).name
        # Not print: a stream that the signal has interrupted refuses to be entered twice.
        if again or not self._training:
            os.write(2, f"{name}: stopping at once.\n".encode())
            raise KeyboardInterrupt
        os.write(2, f"{name}: finishing this step, then saving and stopping.\n".encode())
