"""Who is alive and who holds up whom: what a rank does (``with phase("rollout"):``, ``progress()``), and the verdict.

Nothing here communicates: :mod:`distill.heartbeat` carries each rank's :class:`Beat` to the others, and every rank
judges by its own clock, so that neither a shared clock nor a living rank 0 is needed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SILENCE = 60.0
"""Seconds without a heartbeat after which a rank is lost, or half the limit of its progress where that is less."""
STARTING_SILENCE = 300.0
"""The same before and after training: an import from a slow file system lets no other thread run."""
LONG = ("checkpoint", "sparsity", "geometry", "subspace", "gradient_variance")
"""Phases in training that are one long piece of work inside libraries; the longer of the two limits counts."""
COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")
"""Where the calls are in which a rank waits for others."""


@dataclass
class Activity:
    """What this process does. Written by its main thread, read by the heartbeat's.

    ``order`` counts the phases entered and left: ranks run through the same ones, so the smallest is the one behind.
    """

    phase: str = "start"
    step: int = 0
    order: int = 0
    count: int = 0
    training: bool = False


here = Activity()
before_end: list[Callable[[], None]] = []
"""What is called before a process is ended from the watching thread: files to flush."""


def enter(phase: str, step: int | None = None) -> None:
    """Tells that this rank has come to a phase, of the optimizer step ``step`` (1 for the first) when it is given."""
    here.phase, here.step = phase, here.step if step is None else step
    here.order += 1


@contextmanager
def phase(name: str, step: int | None = None) -> Iterator[None]:
    """A phase that ends: afterwards the rank is in the one around it."""
    around = here.phase
    enter(name, step)
    # Not left where an error ends the run: the phase is where it happened.
    yield
    enter(around)


def progress() -> None:
    """Tells that this rank gets on within its phase."""
    here.count += 1


def training(now: bool) -> None:
    """Tells whether steps are being taken: ``trainer.timeout`` counts then, ``trainer.startup_timeout`` else."""
    here.training = now


def reset() -> None:
    """Forgets what an earlier run of this process did."""
    fresh = Activity()
    for name, value in vars(fresh).items():
        setattr(here, name, value)
    before_end.clear()


@dataclass(frozen=True)
class Beat:
    """What one rank says about itself. ``waiting``: its main thread is in a collective; ``where``: its line of code."""

    rank: int
    host: str
    pid: int
    phase: str
    step: int
    order: int
    count: int
    training: bool
    waiting: bool = False
    where: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


def beat(rank: int, host: str) -> Beat:
    """This process's own beat, with a look at what its main thread is in."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    seen = (_waits(frame), _at(frame))
    return Beat(rank, host, os.getpid(), here.phase, here.step, here.order, here.count, here.training, *seen)


@dataclass
class Seen:
    """What a rank knows of one rank, by its own clock (seconds): ``left`` is the exit status it said goodbye with."""

    beat: Beat
    heard: float
    moved: float
    closed: bool = False
    left: int | None = None

    def update(self, beat: Beat, now: float) -> None:
        if (beat.order, beat.count, beat.training) != (self.beat.order, self.beat.count, self.beat.training):
            self.moved = now
        self.beat, self.heard = beat, now


@dataclass(frozen=True)
class Limits:
    """Seconds, and the keys that hold them."""

    startup: float
    train: float

    def of(self, beat: Beat) -> float:
        return self.train if self._steps(beat) else self.startup

    def silence(self, beat: Beat) -> float:
        return min(SILENCE if beat.training else STARTING_SILENCE, self.of(beat) / 2)

    def key(self, beat: Beat) -> str:
        return f"`trainer.{'timeout' if self._steps(beat) else 'startup_timeout'}`"

    def _steps(self, beat: Beat) -> bool:
        return beat.training and not (beat.phase in LONG and self.startup > self.train)


@dataclass(frozen=True)
class Verdict:
    """The ranks that end the run, and the message; no text where the rank has spoken for itself.

    ``gone``: they are lost, and more may be found lost a moment later, when a machine fails.
    """

    ranks: tuple[int, ...]
    text: str | None
    gone: bool = False


def judge(seen: Mapping[int, Seen], now: float, limits: Limits, own: int, failed: bool = False) -> Verdict | None:
    """Whether the run can go on; ``failed`` says that a collective of this rank, ``own``, has not succeeded.

    A rank is lost when it failed, when its connections closed without a goodbye, and when it has not been heard of. It
    holds up the others when it makes no progress, is not waiting itself, and no rank that is as far behind moves: that
    one could be what it waits for inside a library.
    """
    there = {rank: one for rank, one in seen.items() if one.left != 0}
    ended = [one for one in there.values() if one.left]
    if ended:
        return Verdict(_ranks(ended), None)
    others = [one for rank, one in there.items() if rank != own]
    if dead := [one for one in others if one.closed]:
        return _verdict(dead, "died: its connection closed without a goodbye", "; {last}", gone=True)
    if lost := [one for one in others if now - one.heard > limits.silence(one.beat)]:
        seconds = min(now - one.heard for one in lost)
        return _verdict(lost, f"not been heard of for {seconds:.0f} s", "; {last}", gone=True)
    behind = _behind(there.values())
    # Where all wait in collectives, whoever moves can still be the one they wait for.
    if _still(there.values() if behind and behind[0].beat.waiting else behind, now, limits):
        first = behind[0].beat
        text = f"made no progress for {limits.of(first):.0f} s ({limits.key(first)})"
        return _verdict(behind, text, "; {last}, in {where}")
    if failed:
        keeping = [one for one in behind if one.beat.rank != own] or behind
        text = f"kept others waiting beyond {limits.of(seen[own].beat):.0f} s ({limits.key(seen[own].beat)})"
        return _verdict(keeping, text, "; {last}, in {where}")
    return None


def _behind(seen: Iterable[Seen]) -> list[Seen]:
    """Of the ranks that do not wait in a collective, or of all if every one does, those in the earliest phase."""
    everyone = list(seen)
    able = [one for one in everyone if not one.beat.waiting] or everyone
    first = min((one.beat.order for one in able), default=0)
    return [one for one in able if one.beat.order == first]


def _still(seen: Iterable[Seen], now: float, limits: Limits) -> bool:
    return all(now - one.moved > limits.of(one.beat) for one in seen)


def _verdict(found: list[Seen], what: str, rest: str, gone: bool = False) -> Verdict:
    first, *more = (one.beat for one in found)
    if not more:
        who = f"{first} has"
    elif len(more) == 1:
        who = f"{first} and {more[0]} have"
    else:
        who = f"{first} and {len(more)} more ({', '.join(str(beat.rank) for beat in more)}) have"
    last = f"its last word was phase '{first.phase}' at step {first.step}"
    return Verdict(_ranks(found), f"{who} {what}{rest.format(last=last, where=first.where or 'a library')}.", gone)


def _ranks(found: Iterable[Seen]) -> tuple[int, ...]:
    return tuple(one.beat.rank for one in found)


def _waits(frame: FrameType | None) -> bool:
    while frame is not None:
        if any(place in frame.f_code.co_filename for place in COLLECTIVES):
            return True
        frame = frame.f_back
    return False


def _at(frame: FrameType | None) -> str:
    """``file.py:line`` of the innermost frame of this package, else of the innermost one."""
    own, found = str(Path(__file__).parent), frame
    while found is not None and not found.f_code.co_filename.startswith(own):
        found = found.f_back
    found = found or frame
    return "" if found is None else f"{Path(found.f_code.co_filename).name}:{found.f_lineno}"
