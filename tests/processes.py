"""Processes of the tests, forked from one that has imported everything: to import costs more than a tiny run does.

They share no more than the imports: each has its own environment, folder, session and log. What is tested from the
command line on starts ``python -m distill`` itself.
"""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

ROOT = Path(__file__).parents[1]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = itertools.cycle(range(20_000 + 1_000 * _worker, 21_000 + 1_000 * _worker))


GRACE = 10.0
_alive: WeakSet[Process] = WeakSet()


class Process:
    """``work(*arguments)`` in a process whose exit status is what it returns; ``log`` gets what it prints."""

    def __init__(
        self, folder: Path, work: Callable[..., int | None], *arguments: Any, log: str = "log", **environment: Any
    ) -> None:
        self.log = folder / log
        # The first one starts what all are forked from, which finds the tests by this.
        os.environ.setdefault("PYTHONPATH", str(ROOT))
        found = os.environ | {name: str(value) for name, value in environment.items()}
        self._process = _context.Process(target=_live, args=(self.log, found, work, arguments))
        self._process.start()
        _alive.add(self)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative after a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 120) -> int:
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            self.kill()
            raise TimeoutError(f"not over after {timeout} s:\n{self.said()}")
        return status

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it and its children."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.join()


class Ranks:
    """The processes of one world, each of which does ``work(*arguments)``; when one has failed, the others have
    :data:`GRACE` seconds to say what they have to say."""

    def __init__(self, folder: Path, work: Callable[..., int | None], *arguments: Any, count: int = 2) -> None:
        self._failed: float | None = None
        port = free_port()
        self.processes = [
            Process(folder, work, *arguments, log=f"log{rank}", **places(rank, count, port)) for rank in range(count)
        ]

    def over(self) -> bool:
        statuses = [process.poll() for process in self.processes]
        if any(statuses):
            self._failed = self._failed or time.monotonic()
            if time.monotonic() - self._failed > GRACE:
                self.kill()
        return None not in statuses

    def wait(self, timeout: float) -> Sequence[int | None]:
        """The exit status of each."""
        deadline = time.monotonic() + timeout
        while not self.over():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return [process.poll() for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def said(self) -> str:
        return "\n".join(process.said() for process in self.processes)


def together(folder: Path, work: Callable[..., int | None], *arguments: Any, timeout: float = 300) -> None:
    """Two ranks, which have to succeed."""
    ranks = Ranks(folder, work, *arguments)
    assert ranks.wait(timeout) == [0, 0], ranks.said()[-4000:]


def places(rank: int, count: int, port: int) -> dict[str, Any]:
    """What a launcher says to a rank."""
    found = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return found | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def free_port() -> int:
    """A free one below those the kernel hands out, which a launcher of another test could get in between."""
    while True:
        port = next(_ports)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def _live(log: Path, environment: dict[str, str], work: Callable[..., int | None], arguments: Sequence[Any]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(log.parent)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(work(*arguments))


@atexit.register
def _end_all() -> None:
    for process in _alive:
        process.kill()
