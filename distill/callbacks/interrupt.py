"""Signals (Ctrl-C, SIGTERM, SIGUSR1) and the wall-clock limit: finish the step, save, stop."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L

from distill import distributed
from distill.callbacks.deadline import Deadline
from distill.callbacks.steps import StepCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
OUT_OF_TIME = 124
"""The exit status of a run that stopped before its wall-clock limit, as of timeout(1)."""
FAILED = 1
"""That of a run that has ended itself."""
SAME_PRESS = 1.0
"""Seconds in which a repeated Ctrl-C is the same one: torchrun passes on what the terminal has sent to all already."""

log = logging.getLogger(__name__)


def fail(trainer: L.Trainer, reason: str) -> None:
    """Ends training after this step as a signal does, saved, and as a failure. Every rank calls it at the same step."""
    interrupt = next(callback for callback in trainer.callbacks if isinstance(callback, Interrupt))  # type: ignore[attr-defined]
    if not interrupt.status:
        interrupt.status, interrupt.reason = FAILED, reason
    trainer.should_stop = True


class Interrupt(StepCallback):
    """Turns a signal to any rank, or the clock of rank 0, into a stop that all ranks agree on after the current step.

    The handler only sets a flag: saving or communicating inside a signal handler deadlocks when ranks are signalled at
    different moments. Before the first step there is nothing to save, and a signal stops at once, as a second Ctrl-C
    does. ``received`` is the number of this rank's signal, or 0; ``status`` is the exit status that all ranks agreed
    on: 0, 128 + a signal's number, 124, or 1 for the ``reason`` that :func:`fail` was given. The first of the
    callbacks: the evaluation at the start takes long.
    """

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.received = self.status = 0
        self.reason = ""
        self.deadline = deadline
        self._boundary = 0.0
        self._saving: float | None = None
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
            if self.status and distributed.launched():
                # srun ends the slower ranks when the first has gone, and their 143 would stand for what was agreed.
                self._previous[signal.SIGTERM] = signal.SIG_IGN
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Lightning's own handler of SIGTERM broadcasts inside the handler.
        self._listen(*SIGNALS)
        # A resumed epoch does not start again, and has no evaluation before its first step.
        self._training = trainer.global_step > 0
        self._boundary = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training = True
        self._boundary = time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._saving = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        # Nothing tells when a save ends; up to here it has taken a rollout more, which errs on the safe side.
        if self._saving is not None and self.deadline is not None:
            self.deadline.longest_save = max(self.deadline.longest_save, time.monotonic() - self._saving)
        self._saving = None

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        late = self.deadline is not None and step < trainer.max_steps and self._late(self.deadline)
        own = 128 + self.received if self.received else OUT_OF_TIME * late
        self.status = distributed.all_max(own)
        if self.status:
            trainer.should_stop = True

    def _late(self, deadline: Deadline) -> bool:
        """Whether time is up on the clock of rank 0, which decides for all."""
        now = time.monotonic()
        deadline.longest_step = max(deadline.longest_step, now - self._boundary + deadline.spared)
        self._boundary, deadline.spared = now, 0.0
        late = distributed.rank() == 0 and deadline.reached()
        if late:
            text = "%.0f s are left and a step with its save may take %.0f s: saving and stopping"
            log.warning(text, deadline.left, deadline.margin)
        return late

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
