"""Stopping a sweep or a study: the running jobs save, no further ones start."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from distill.sweeps import record

SIGNALLED = 128


@contextmanager
def stoppable(home: Path, *, elsewhere: bool = False) -> Iterator[list[int]]:
    """Within it Ctrl-C and SIGTERM stop the jobs of ``home`` on this machine, and are noted in the list.

    With ``elsewhere`` the jobs outlive this process, and a signal only ends the waiting for them.

    Raises:
        SystemExit: with 128 + the signal's number, if ``elsewhere``.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if elsewhere:
            os.write(2, b"No longer waiting; the jobs go on (squeue lists them, scancel stops them).\n")
            raise SystemExit(SIGNALLED + number)
        record.stop(home, number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
