"""The phases of a run, as a short run on one process goes through them, and what is flushed at a sudden end."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill import heartbeat, watchdog
from distill.commands.train import run
from tests import tiny


def test_every_phase_of_a_run_is_told_with_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    original = watchdog.enter

    def enter(phase: str, step: int | None = None) -> None:
        original(phase, step)
        told.append((phase, watchdog.here.step, watchdog.here.training))

    monkeypatch.setattr(watchdog, "enter", enter)
    changes = {"trainer__max_steps": 2, "callbacks__checkpoint__every_n_steps": 2, "logger__csv": True}
    assert run(tiny.config(**changes), tmp_path) == 0
    assert ("load", 0, False) in told
    assert ("evaluation", 0, False) in told
    steps = [entry for entry in told if entry[0] in ("rollout", "forward", "backward") and entry[2]]
    assert steps == [(phase, step, True) for step in (1, 2) for phase in ("rollout", "forward", "backward")]
    assert {("sparsity", 2, True), ("checkpoint", 2, True), ("export", 2, False), ("report", 2, False)} <= set(told)
    assert watchdog.here.count > 0, "decoded tokens are progress"
    assert len(watchdog.before_end) == 2, "metrics.jsonl and metrics.csv"
    for flush in watchdog.before_end:
        flush()


def test_one_process_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "Heart", None)
    watchdog.enter("step", 9)
    with heartbeat.watching(watchdog.Limits(1.0, 1.0), "gloo"):
        assert watchdog.here == watchdog.Activity()
