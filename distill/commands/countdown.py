"""How far a long command is and how long it will take: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS = 10.0
"""Between two lines; a command that is done sooner prints none."""


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
    began = shown = time.monotonic()
    done = 0.0

    def advance(work: float) -> None:
        nonlocal done, shown
        done += work
        now = time.monotonic()
        if done and now - shown >= SECONDS:
            shown = now
            left = (now - began) * (whole / done - 1)
            print(f"{what}: {done / whole:.0%}, {left:.0f} s left", file=sys.stderr, flush=True)

    return advance
