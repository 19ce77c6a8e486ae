"""What a person sees: the numbers, and that the display moves in long phases."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distill.callbacks import progress
from distill.callbacks.progress import ProgressReport, headline

METRICS = {"loss": 0.12345, "eval/accuracy": 0.45, "sparsity/bf16/1e-5": 0.712, "tokens_per_second": 1234.4}


class Clock:
    """Stands for ``time``; moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def trainer(step: int = 0, **options: Any) -> Any:
    return SimpleNamespace(global_step=step, max_steps=40, is_global_zero=True, should_stop=False, **options)


def report(mode: str = "plain", step: int = 0, **metrics: float) -> ProgressReport:
    shown = ProgressReport(mode, lambda: metrics)
    shown.setup(trainer(step), None, "fit")  # type: ignore[arg-type]
    shown.on_train_start(trainer(step), None)  # type: ignore[arg-type]
    return shown


def test_the_headline_names_what_is_known() -> None:
    assert headline(METRICS) == "loss 0.1235 · accuracy 45.0 % · sparsity 71.2 % · 1,234 tok/s"
    assert headline({"loss": 2.0}) == "loss 2.0000"
    assert headline({}) == ""


def test_a_line_every_ten_seconds_with_step_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = report(loss=0.5)
    capsys.readouterr()
    for step in range(1, 11):
        clock.now += 2
        shown.on_step(trainer(), None, step)  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 5/40 · loss 0.5000 · 1:10 left", "step 10/40 · loss 0.5000 · 1:00 left"]


def test_the_last_step_has_its_line_also_when_the_run_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    shown, stopped = report(), trainer()
    shown.on_step(trainer(), None, 39)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    stopped.should_stop = True
    shown.on_step(stopped, None, 39)  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith("step 39/40")


def test_a_long_rollout_is_heard_of(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = report()
    for _ in range(25):
        clock.now += 1
        shown.activity("rollout", 8)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 0/40 · rollout 80 tokens", "step 0/40 · rollout 160 tokens"]


def test_a_bar_shows_numbers_and_activity_and_closes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = report("bar", loss=0.5)
    bar = shown._bar
    assert bar is not None
    shown.activity("evaluation", 1500)
    assert bar.tasks[0].description == "loss 0.5000 · evaluation 1,500 tokens"
    shown.on_step(trainer(), None, 3)  # type: ignore[arg-type]
    assert (bar.tasks[0].completed, bar.tasks[0].total) == (3, 40)
    assert bar.tasks[0].description == "loss 0.5000"
    shown.on_exception(trainer(), None, ValueError())  # type: ignore[arg-type]
    assert bar.finished or not bar.live.is_started
    assert shown._bar is None


def test_a_resumed_run_says_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    report(step=7)
    assert capsys.readouterr().err == "resuming after step 7\n"


@pytest.mark.parametrize("case", ["off", "another rank"])
def test_silence(case: str, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ProgressReport("off" if case == "off" else "plain", lambda: METRICS)
    rank = trainer()
    rank.is_global_zero = case == "off"
    shown.setup(rank, None, "fit")  # type: ignore[arg-type]
    shown.on_train_start(rank, None)  # type: ignore[arg-type]
    clock.now += 100
    shown.activity("rollout", 5)
    shown.on_step(rank, None, 40)  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")


def test_auto_is_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert ProgressReport("auto", dict).mode == "plain"
