"""Signals and the clock stop a run after its step; a second Ctrl-C, or a signal before the first step, at once."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from distill.callbacks import interrupt
from distill.callbacks.deadline import RATE, Deadline
from distill.callbacks.interrupt import Interrupt


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(interrupt, "time", clock)
    return clock


def started(callback: Interrupt) -> Any:
    trainer: Any = SimpleNamespace(global_step=1, should_stop=False)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    callback.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_stops_after_the_step(number: int, clock: Clock) -> None:
    callback = Interrupt()
    with callback.listening():
        trainer = started(callback)
        callback.on_step(trainer, None, 1)  # type: ignore[arg-type]
        assert not trainer.should_stop
        os.kill(os.getpid(), number)
        assert callback.received == number
        assert not trainer.should_stop
        callback.on_step(trainer, None, 2)  # type: ignore[arg-type]
        assert trainer.should_stop
        assert callback.status == 128 + number


def test_a_resumed_run_finishes_its_first_step(clock: Clock) -> None:
    callback = Interrupt()
    with callback.listening():
        # Lightning does not start the epoch of a resumed run again.
        callback.on_train_start(SimpleNamespace(global_step=5), None)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert callback.received == signal.SIGUSR1


def steps(callback: Interrupt, clock: Clock, *seconds: float, first: int = 1, max_steps: int = 100) -> list[bool]:
    """Takes one step after the other, saving after each; whether each was to be the last."""
    trainer: Any = SimpleNamespace(global_step=0, should_stop=False, max_steps=max_steps)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    callback.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    stopped = []
    for step, duration in enumerate(seconds, first):
        callback.on_train_batch_start(trainer, None)  # type: ignore[arg-type]
        clock.now += duration
        callback.on_step(trainer, None, step)  # type: ignore[arg-type]
        stopped.append(trainer.should_stop)
        callback.on_save_checkpoint(trainer, None, {})  # type: ignore[arg-type]
        clock.now += 2
    return stopped


def test_the_longest_step_and_save_decide_when_time_is_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Deadline(at=0.0)
    monkeypatch.setattr(Deadline, "left", property(lambda self: 130 - clock.now))
    callback = Interrupt(limit)
    with callback.listening():
        # 27 s are left after the first step, 21 after the second, 16 after the third: 6 + 2 + RESERVE do not fit.
        assert steps(callback, clock, 3, 4, 3) == [False, False, True]
    assert (limit.longest_step, limit.longest_save) == (6, 2)
    assert callback.status == interrupt.OUT_OF_TIME


def test_a_step_that_might_have_taken_longer_counts_as_if_it_had(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Deadline(at=0.0)
    limit.spared = 20
    monkeypatch.setattr(Deadline, "left", property(lambda self: 200 - clock.now))
    callback = Interrupt(limit)
    with callback.listening():
        assert steps(callback, clock, 3, 4) == [False, False]
    assert (limit.longest_step, limit.spared) == (23, 0), "the first step alone"


def test_time_is_up_while_a_first_save_of_the_estimated_length_still_fits(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = Deadline(at=0.0, state=int(50 * RATE))
    monkeypatch.setattr(Deadline, "left", property(lambda self: 160 - clock.now))
    callback = Interrupt(limit)
    with callback.listening():
        # 57 s are left: enough for a step and RESERVE, not for 50 s of saving as well.
        assert steps(callback, clock, 3) == [True]
    assert callback.status == interrupt.OUT_OF_TIME


def test_the_last_step_is_no_reason_to_stop_early(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "left", property(lambda self: 0.0))
    callback = Interrupt(Deadline(at=0.0))
    with callback.listening():
        assert steps(callback, clock, 3, max_steps=1) == [False]
    assert callback.status == 0


def test_only_the_clock_of_rank_0_counts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "left", property(lambda self: 0.0))
    monkeypatch.setattr(interrupt.distributed, "rank", lambda: 1)
    callback = Interrupt(Deadline(at=0.0))
    with callback.listening():
        assert steps(callback, clock, 3) == [False]


def test_one_press_that_torchrun_passes_on_is_no_second_press(clock: Clock) -> None:
    callback = Interrupt()
    with callback.listening():
        started(callback)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            clock.now += 0.1
        assert callback.received == signal.SIGINT
        clock.now += 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_repeated_sigterm_never_cuts_the_step_short(clock: Clock) -> None:
    callback = Interrupt()
    with callback.listening():
        started(callback)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            clock.now += 10
        assert callback.received == signal.SIGTERM


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_before_the_first_step_a_signal_stops_at_once(number: int, clock: Clock) -> None:
    callback = Interrupt()
    with callback.listening():
        callback.on_train_start(SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert callback.received == number


def test_sigterm_ends_a_process_that_waits_for_others_to_join() -> None:
    with Interrupt().listening():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_former_handlers_come_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    callback = Interrupt()

    def fail() -> None:
        with callback.listening():
            started(callback)
            assert all(signal.getsignal(number) not in before for number in interrupt.SIGNALS)
            raise ValueError("out")

    with pytest.raises(ValueError, match="out"):
        fail()
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


@pytest.mark.parametrize("launched", [True, False])
def test_a_sigterm_after_an_agreed_stop_does_not_change_the_status(
    launched: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    callback = Interrupt()
    try:
        with callback.listening():
            trainer = started(callback)
            os.kill(os.getpid(), signal.SIGUSR1)
            callback.on_step(trainer, None, 1)  # type: ignore[arg-type]
            monkeypatch.setattr(interrupt.distributed, "launched", lambda: launched)
        after = [signal.getsignal(number) for number in interrupt.SIGNALS]
        if launched:
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in zip(interrupt.SIGNALS, before, strict=True):
            signal.signal(number, handler)
    assert callback.status == 128 + signal.SIGUSR1
    assert after == ([before[0], signal.SIG_IGN, before[2]] if launched else before)


def test_the_message_may_interrupt_a_message(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    callback = Interrupt()
    with callback.listening():
        started(callback)
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "SIGINT: finishing this step, then saving and stopping.\n"
