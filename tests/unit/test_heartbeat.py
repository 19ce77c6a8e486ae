"""The thread of a rank: whose turn it is to speak when a machine fails, and what a mistake in watching costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from distill import heartbeat
from distill.heartbeat import Heart
from distill.watchdog import STARTING_SILENCE, Limits


class Wires:
    """The connections of rank ``rank`` of ``world``; a dead rank's are found closed ``at`` so many seconds."""

    def __init__(self, world: int, rank: int, dying: dict[int, float]) -> None:
        self.who = {other: ("node", 4000 + other) for other in range(world) if other != rank}
        self.began, self.dying = time.monotonic(), dict(dying)
        self.sent: list[dict[str, Any]] = []
        self.mistakes = 0

    def receive(self, seconds: float) -> Iterator[tuple[int, dict[str, Any] | None]]:
        if self.mistakes:
            self.mistakes -= 1
            raise ValueError("not JSON\nat all")
        time.sleep(seconds)
        for rank, at in sorted(self.dying.items()):
            if time.monotonic() - self.began >= at:
                del self.dying[rank]
                yield rank, None

    def send(self, message: dict[str, Any], wait: float = 0.0) -> None:
        self.sent.append(message)

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Ended(BaseException):
    """In place of the end of this process."""


def idle(wires: Wires, world: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> Heart:
    """A heart whose thread has not been started."""
    monkeypatch.setattr(heartbeat.threading.Thread, "start", lambda self: None)
    heart = Heart(wires, rank, Limits(1800.0, 600.0))  # type: ignore[arg-type]
    monkeypatch.undo()
    return heart


@pytest.mark.parametrize("silent", [False, True], ids=["its connections close", "it falls silent"])
def test_the_survivor_of_a_lost_machine_does_not_wait_for_its_dead(
    silent: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wires = Wires(9, 8, {} if silent else {rank: 0.05 * rank for rank in range(8)})
    heart = idle(wires, 9, 8, monkeypatch)
    heart.interval = 0.05
    for name, seconds in (("SETTLE", 0.5), ("TURN", 2.0)):
        monkeypatch.setattr(heartbeat, name, seconds)
    monkeypatch.setattr(heartbeat, "_end_process", lambda: (_ for _ in ()).throw(Ended))
    heart.seen[0].closed = not silent
    for rank in range(8) if silent else ():
        # The first has just been missed, the others are within 0.4 s.
        heart.seen[rank].heard = time.monotonic() - STARTING_SILENCE - 0.01 + 0.05 * rank
    verdict = heart._judge()
    assert verdict is not None
    assert verdict.ranks == (0,)
    began = time.monotonic()
    with pytest.raises(Ended):
        heart._end(verdict)
    # With the turn of the first moment it would be 0.5 + 7 · 2 s.
    assert time.monotonic() - began < 2.0
    assert capfd.readouterr().err.startswith("[rank 8] error: rank 0 (host node, pid 4000) and 7 more (1, 2, 3, 4, ")
    assert wires.sent[-1] == {"ended": (0, 1, 2, 3, 4, 5, 6, 7)}


def test_a_rank_waits_for_the_living_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heart = idle(Wires(4, 3, {}), 4, 3, monkeypatch)
    assert heart._turn({0}) == 2
    heart.seen[1].closed = True
    assert heart._turn({0}) == 1
    heart.seen[2].left = 1
    assert heart._turn({0}) == 0


def test_a_mistake_in_watching_is_told_once_and_the_rank_goes_on_beating(capfd: pytest.CaptureFixture[str]) -> None:
    wires = Wires(2, 1, {})
    wires.mistakes = 3
    heart = Heart(wires, 1, Limits(0.4, 0.4))  # type: ignore[arg-type]
    heart.limits = Limits(1800.0, 600.0)
    until = time.monotonic() + 10
    while wires.mistakes and time.monotonic() < until:
        time.sleep(0.02)
    assert not wires.mistakes
    assert any("beat" in message for message in wires.sent)
    heart.leave(0)
    assert not heart._thread.is_alive()
    assert wires.sent[-1] == {"left": 0}
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("[rank 1] warning: the heartbeat has failed (ValueError: not JSON); it tries again")
