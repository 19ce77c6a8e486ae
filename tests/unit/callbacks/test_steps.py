"""Which phases of a step leave it to the watchdog how long a library's collective waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from distill import distributed
from distill.callbacks.steps import StepCallback


@pytest.mark.parametrize(("phase", "patient"), [("checkpoint", True), ("sparsity", True), ("step", False)])
def test_long_phases_are_patient(phase: str, patient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    @contextmanager
    def libraries() -> Iterator[None]:
        told.append("waits")
        yield
        told.append("over")

    class Callback(StepCallback):
        label = phase

        def on_step(self, *_: object) -> None:
            told.append("acts")

    monkeypatch.setattr(distributed, "patient_libraries", libraries)
    trainer: Any = SimpleNamespace(global_step=1)
    Callback().on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    assert told == (["waits", "acts", "over"] if patient else ["acts"])
