"""How far a long command is and how long it will take: a bar in a terminal, a line every tenth elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINES = 10


@contextmanager
def countdown(what: str, whole: float) -> Iterator[Callable[[float], None]]:
    """Gives a function that takes the work just done, in the unit of ``whole``. Everything is written to stderr."""
    if not sys.stderr.isatty():
        yield _plain(what, whole)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("·"), TimeRemainingColumn(), TextColumn("left"), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task(what, total=whole)
        yield lambda done: bar.advance(task, done)


def _plain(what: str, whole: float) -> Callable[[float], None]:
    began, done, shown = time.monotonic(), 0.0, 0

    def advance(work: float) -> None:
        nonlocal done, shown
        done += work
        tenths = int(LINES * done / whole) if whole else LINES
        if tenths > shown:
            shown = tenths
            left = (time.monotonic() - began) * (whole / done - 1)
            print(f"{what}: {done / whole:.0%}, {left:.0f} s left", file=sys.stderr, flush=True)

    return advance
