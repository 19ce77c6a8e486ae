"""One job of a sweep or a study: a process of its own, so that whatever ends it ends nothing else."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import psutil

from distill.config.redact import redact_text
from distill.sweeps import record
from distill.sweeps.record import Record

PROGRAM = (sys.executable, "-m", "distill")
LOG = "output.log"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that a run answers by saving; a job that one of them has ended is interrupted, not failed."""
OUT_OF_TIME = 124
"""The exit status of a run that stopped before its wall-clock limit."""
FOLLOW_SECONDS = 0.2
SAME_START, SAVE_SECONDS = 10.0, 120.0
"""By how much the start of a process and its record may differ, and how long it may take to save and end."""
TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Job:
    """What is to run: ``distill COMMAND WORDS hydra.run.dir=DIRECTORY``.

    ``home`` is the folder of the sweep, ``environment`` comes on top of this process's, ``start`` is the program and
    ``program`` what a person types for it. ``attempt`` is what the ranks of one start of the job have in common.
    ``echo`` shows the output on stderr while it is written to ``output.log``; ``forward`` passes this process's signals
    on to the job.
    """

    number: int
    command: str
    words: Sequence[str]
    directory: Path
    home: Path
    flags: Sequence[str] = ()
    program: Sequence[str] = ("distill",)
    start: Sequence[str] = PROGRAM
    environment: dict[str, str] = field(default_factory=dict)
    rank: int = 0
    attempt: str = ""
    echo: bool = False
    forward: bool = False

    def arguments(self, *, again: bool) -> list[str]:
        """What follows ``distill``; ``again`` goes on from the job's last checkpoint, or starts if it has none."""
        resumes = again and self.command == "train" and not any(word.startswith("resume=") for word in self.words)
        own = [quoted("hydra.run.dir", shown(self.directory)), *(["resume=auto"] if resumes else [])]
        return [self.command, *self.flags, *self.words, *own]


def run(job: Job) -> Record:
    """Runs a job to its end and returns how that was; the record of rank 0 is on disk while the job runs.

    A job that was started before (requeued, or its sweep is continued) goes on from its last checkpoint, and is left
    alone if it ended well. None starts once the sweep is to stop.
    """
    before = record.read(job.home, job.number)
    if before is not None and job.attempt and before.attempt == job.attempt:
        # Of rank 0, which was faster.
        before = None
    rerun = shlex.join(redact_text(word) for word in [*job.program, *job.arguments(again=True)])
    words = list(map(redact_text, job.words))
    entry = Record(job.number, words, str(job.directory), rerun, started=time.time(), attempt=job.attempt)
    if record.stopping(job.home):
        return entry
    again = before is not None and before.dir == entry.dir
    if before is not None and again:
        if before.status == "ok":
            return before
        if job.rank == 0:
            _end(before)
    job.directory.mkdir(parents=True, exist_ok=True)
    log = job.directory / (LOG if job.rank == 0 else f"output-{job.rank}.log")
    start = log.stat().st_size if log.exists() else 0
    code, pid = _run(job, entry, log, again=again)
    entry = replace(
        entry,
        status=_status(code),
        exit_status=code,
        error=None if code == 0 else _reason(log, start, code),
        metric=record.headline(job.directory),
        seconds=round(time.time() - entry.started, 1),
        pid=pid,
        host=socket.gethostname(),
    )
    if job.rank == 0:
        record.write(job.home, entry)
    return entry


def _run(job: Job, entry: Record, log: Path, *, again: bool) -> tuple[int, int]:
    """Starts the process and waits for it; returns its exit status and its id."""
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            [*job.start, *job.arguments(again=again)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | job.environment,
        )
    with _forwarding(process, job.forward), _followed(log, start, job.echo):
        if job.rank == 0:
            record.write(job.home, replace(entry, status="running", pid=process.pid, host=socket.gethostname()))
        if number := record.stopping(job.home):
            process.send_signal(number)
        return process.wait(), process.pid


def quoted(key: str, value: str) -> str:
    """``key=value`` in Hydra's grammar, in quotes only where the value needs them."""
    plain = value and all(char.isalnum() or char in "_./+-:@%" for char in value)
    return f"{key}={value}" if plain else f"{key}={in_quotes(value)}"


def in_quotes(text: str) -> str:
    """A text as Hydra's grammar quotes it: a backslash is one only before a quote."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text) + '"'


def shown(path: Path) -> str:
    """A path as a person would type it: relative to here if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _end(before: Record) -> None:
    """Ends a process of this job that has outlived whoever started it: two would write into one directory."""
    if before.status != "running" or before.host != socket.gethostname() or before.pid is None:
        return
    try:
        process = psutil.Process(before.pid)
        if abs(process.create_time() - before.started) > SAME_START:
            return
        process.terminate()
        process.wait(SAVE_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait()
    except psutil.NoSuchProcess:
        return


def _status(code: int) -> str:
    if code == 0:
        return "ok"
    stopped = {OUT_OF_TIME, *(value for number in STOPPING for value in (128 + number, -number))}
    return "interrupted" if code in stopped else "failed"


def _reason(log: Path, start: int, code: int) -> str:
    """The job's error line, else its last line; and the signal that killed it."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    said = redact_text((errors or lines or ["no output"])[-1])
    return said if code >= 0 else f"killed by {signal.Signals(-code).name} after: {said}"


@contextmanager
def _forwarding(process: subprocess.Popen[bytes], wanted: bool) -> Iterator[None]:
    """Within it signals to this process go to the job, which knows how to stop; this process waits for it."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _followed(log: Path, start: int, wanted: bool) -> Iterator[None]:
    """Within it what is written to ``log`` appears on stderr.

    The job writes to the file itself: a pipe would stay open as long as any process that the job has left behind.
    """
    if not wanted:
        yield
        return
    ended = threading.Event()
    with log.open("rb") as file:
        file.seek(start)
        thread = threading.Thread(target=_copy, args=(file, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _copy(file: BinaryIO, ended: threading.Event) -> None:
    last = False
    while not last:
        last = ended.wait(FOLLOW_SECONDS)
        if text := file.read().decode(errors="replace"):
            print(text, end="", file=sys.stderr, flush=True)
