"""The heartbeat of each rank, carried by TCP connections between all of them, and the thread that ends a lost run.

The connections are those of :class:`Links`; no rank is special once they stand. The thread lives beside a main thread
that may be blocked inside a library for ever, so it ends the process itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from distill import distributed, watchdog
from distill.errors import RunError
from distill.links import Links, meet
from distill.watchdog import Beat, Limits, Seen, Verdict

INTERVAL = 1.0
"""Seconds between beats, or an eighth of the shortest limit."""
MANY = 256
"""Ranks from which on beats come more rarely: what there is to hear of grows with each."""
QUICK = 0.1
"""Seconds between beats while phases change, so that a rank's last word is its last phase; longer with many ranks."""
SETTLE = 1.0
"""Seconds in which ranks that die together are seen to, and in which one that failed speaks for itself."""
runs = itertools.count()
"""Runs of this process, which meet at the same store under different names."""
TURN = 2.0
"""Seconds by which each living rank waits longer than the one before it to speak."""
FLUSHING = 3.0
"""Seconds that loggers get to write what they hold."""


@contextmanager
def watching(limits: Limits, backend: str) -> Iterator[None]:
    """Around a run: joins its processes to a group of ``backend`` and watches over them; for one process, nothing.

    Raises:
        RunError: a rank has not come within ``limits.startup`` seconds.
        UserError: the launcher has not said where rank 0 is.
    """
    watchdog.reset()
    if not distributed.launched():
        yield
        return
    # The main thread may never return from joining where rank 0, the host of the store, is stopped.
    # Twice the limit, for a rank that came early waits for a lower one to say who is missing.
    guard = threading.Timer(2 * limits.startup + SETTLE, _never_joined, [limits.startup])
    guard.daemon = True
    guard.start()
    try:
        heart = _join(limits, backend)
    finally:
        guard.cancel()
    try:
        yield
    except BaseException as error:
        if distributed.lost_peer(error):
            heart.tell_failure()
        heart.leave(1)
        raise
    heart.leave(0)


def _join(limits: Limits, backend: str) -> Heart:
    store = distributed.store(limits.startup)
    rank, place = distributed.rank(), distributed.part(store, f"heartbeat/{next(runs)}")
    try:
        links = meet(place, rank, distributed.world_size(), limits.startup)
    except Exception as error:
        if distributed.lost_peer(error):
            raise RunError("rank 0 has died in phase 'start', before all ranks had met.") from error
        raise
    heart = Heart(links, rank, limits)
    try:
        distributed.join(store, backend, limits.startup)
    except Exception as error:
        if distributed.lost_peer(error):
            heart.tell_failure()
        heart.leave(1)
        raise
    return heart


class Heart:
    """Beats for this rank, listens to the others and judges, in a thread of its own, from the moment it is made."""

    def __init__(self, links: Links, rank: int, limits: Limits) -> None:
        self.links, self.rank, self.limits = links, rank, limits
        self.interval = min(INTERVAL * max(1.0, len(links.who) / MANY), limits.train / 8, limits.startup / 8)
        self.quick = min(self.interval, max(QUICK, 0.05 * QUICK * len(links.who)))
        now, self._host = time.monotonic(), socket.gethostname()
        first = {other: Beat(other, *who, "start", 0, 0, 0, False) for other, who in links.who.items()}
        first[rank] = watchdog.beat(rank, self._host)
        self.seen = {one: Seen(beat, now, now) for one, beat in first.items()}
        self._leaving: int | None = None
        self._failed = self._beaten = 0.0
        self._ticked, self._order = 0.0, -1
        self._mistake = ""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def leave(self, status: int) -> None:
        """Says goodbye: what this rank does from now on is its own affair."""
        self._leaving = status
        self.links.wake()
        self._thread.join(2 * self.interval + SETTLE)

    def tell_failure(self) -> None:
        """Says that a collective has failed because of another rank, and leaves it to the thread to say which."""
        self._failed = time.monotonic()
        # torchrun ends what is left as soon as one rank is gone, which is too soon to say which.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # Longer than the thread can take, whatever it waits for.
        self._thread.join(self.limits.silence(self.seen[self.rank].beat) + TURN * len(self.seen) + 10 * SETTLE)

    def _run(self) -> None:
        while self._leaving is None:
            try:
                self._round()
            except Exception as error:
                self._survive(error)
        with suppress(Exception):
            self.links.send({"left": self._leaving}, wait=SETTLE)
            self.links.close()

    def _round(self) -> None:
        self._listen(self.quick)
        now = time.monotonic()
        if self._ticked and now - self._ticked > 4 * self.interval + SETTLE:
            # This process was stopped: what the others did meanwhile is not known yet.
            self._listen(SETTLE)
            now = time.monotonic()
            self._forgive(now)
        self._ticked = now
        self._beat(now)
        verdict = self._judge()
        if verdict is not None:
            self._end(verdict)

    def _survive(self, error: Exception) -> None:
        """A mistake in watching ends no run: it is told once, and this rank keeps on beating for the others."""
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        if what != self._mistake:
            self._mistake = what
            text = f"[rank {self.rank}] warning: the heartbeat has failed ({what}); it tries again, but if this lasts"
            os.write(2, f"{text}, this rank notices no loss of others and may be taken for lost.\n".encode())
        time.sleep(self.interval)
        with suppress(Exception):
            self._beat(time.monotonic())

    def _beat(self, now: float) -> None:
        own = watchdog.beat(self.rank, self._host)
        if self._failed:
            # It has waited long enough.
            own = dataclasses.replace(own, waiting=True)
        self.seen[self.rank].update(own, now)
        if now - self._beaten >= self.interval or own.order != self._order:
            self.links.send({"beat": dataclasses.astuple(own)})
            self._beaten, self._order = now, own.order

    def _judge(self) -> Verdict | None:
        now = time.monotonic()
        failed = 0 < self._failed < now - 4 * self.interval - SETTLE
        return watchdog.judge(self.seen, now, self.limits, self.rank, failed)

    def _listen(self, seconds: float) -> None:
        for rank, message in self.links.receive(seconds):
            one = self.seen[rank]
            if message is None:
                one.closed = True
            elif "beat" in message:
                one.update(Beat(*message["beat"]), time.monotonic())
            elif "left" in message:
                one.left = message["left"]
            elif "ended" in message:
                # Another rank has spoken.
                self._stop()

    def _forgive(self, now: float) -> None:
        for one in self.seen.values():
            one.heard = one.moved = now

    def _end(self, verdict: Verdict) -> None:
        """Waits for its turn, for a rank before it may speak; then speaks, tells the others, and ends the process."""
        began, lost = time.monotonic(), set(verdict.ranks)
        while time.monotonic() < began + SETTLE + TURN * self._turn(lost):
            self._listen(self.interval / 2)
            if self._leaving is not None:
                return
            # When a machine fails, its ranks are missed one after the other: none of them has a turn.
            if verdict.gone and (more := self._judge()) is not None and more.gone:
                lost.update(more.ranks)
        if verdict.gone:
            verdict = self._judge() or verdict
        if verdict.text is not None:
            os.write(2, f"[rank {self.rank}] error: {verdict.text}\n".encode())
            # Said once, whatever becomes of the connections.
            with suppress(Exception):
                self.links.send({"ended": verdict.ranks}, wait=SETTLE)
        self._stop()

    def _turn(self, lost: set[int]) -> int:
        """How many ranks may speak before this one, as far as is known now."""
        living = [rank for rank, one in sorted(self.seen.items()) if not one.closed and one.left is None]
        speakers = [rank for rank in living if rank not in lost] or living
        return speakers.index(self.rank) if self.rank in speakers else len(speakers)

    def _stop(self) -> None:
        if self._leaving is None:
            _end_process()


def _end_process() -> None:
    """The main thread may be inside a library that never returns, so nothing is asked of it."""

    def flush() -> None:
        for call in watchdog.before_end:
            call()

    flushing = threading.Thread(target=flush, daemon=True)
    flushing.start()
    flushing.join(FLUSHING)
    os._exit(1)


def _never_joined(seconds: float) -> None:
    os.write(
        2, f"error: not all ranks have started within {2 * seconds:.0f} s (2 · `trainer.startup_timeout`).\n".encode()
    )
    os._exit(1)
