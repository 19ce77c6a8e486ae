"""Runs of two ranks in which one rank comes to grief: ``python -m tests.distributed.watched SPECIFICATION``, JSON.

The ranks are forks of this process, which has imported everything, and are not tended by a launcher. ``grief`` says to
which rank, at which phase and step, and how: a signal, ``stall``, ``slow``, ``raise``, or ``never`` (it does not
join). With ``after`` a signal comes from outside, that many seconds after the start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from distill import cli, watchdog
from distill.commands.train import run
from tests import processes

GIVEN_UP = 90.0
"""Seconds after which a run that does not end is killed, which its statuses show."""


def play(runs: list[dict[str, Any]], results_file: Path, at_once: int) -> int:
    """Writes the outcome of each run, by its name; ``at_once`` of them run beside each other."""
    torch.set_num_threads(1)
    waiting = [Pair(given) for given in runs]
    results, running = {}, list[Pair]()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop(0))
            running[-1].start()
        for pair in [pair for pair in running if pair.over()]:
            running.remove(pair)
            whole = time.time() - pair.began
            results[pair.given["name"]] = {"status": pair.status, "seconds": pair.seconds, "whole": whole}
        time.sleep(0.05)
    results_file.write_text(json.dumps(results))
    return 0


class Pair:
    """The two ranks of one run; ``status`` and ``seconds`` (since the grief began) by rank."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.folder = given, Path(given["folder"])
        self.grief = given["grief"]
        self.status: dict[int, int] = {}
        self.seconds: dict[int, float] = {}

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        for rank in range(2):
            (self.folder / f"stderr{rank}").touch()
        port = processes.free_port()
        self.began = time.time()
        self.pids = {os.fork() or _rank(self.given, rank, port): rank for rank in range(2)}

    def over(self) -> bool:
        if self.grief and "after" in self.grief:
            self._strike()
        for pid, rank in self.pids.items():
            if rank in self.status:
                continue
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.status[rank] = os.waitstatus_to_exitcode(status)
                with suppress(OSError):
                    self.seconds[rank] = time.time() - float((self.folder / "began").read_text())
            elif time.time() - self.began > GIVEN_UP or (self.status and self.grief and self.grief["how"] == "never"):
                os.kill(pid, signal.SIGKILL)
            elif self.status and self.grief and self.grief["how"] == "SIGSTOP" and rank == self.grief["rank"]:
                os.kill(pid, signal.SIGCONT)
        return len(self.status) == len(self.pids)

    def _strike(self) -> None:
        """The signal from outside, when its time has come, if the rank is still there."""
        began = self.folder / "began"
        [pid] = (pid for pid, rank in self.pids.items() if rank == self.grief["rank"])
        due = time.time() - self.began >= self.grief["after"] and not began.exists()
        if due and self.grief["rank"] not in self.status:
            began.write_text(repr(time.time()))
            os.kill(pid, signal.Signals[self.grief["how"]])


def _rank(given: dict[str, Any], rank: int, port: int) -> int:
    """The life of one rank, which never returns from here."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{given['folder']}/{name}{rank}", os.O_WRONLY | os.O_CREAT), number)
    os.environ |= {name: str(value) for name, value in processes.places(rank, 2, port).items()}
    grief, status = given["grief"], 70
    try:
        if grief and grief["rank"] == rank and "after" not in grief:
            _arrange(grief, Path(given["folder"], "began"))
        status = run(given["config"], Path(given["run_dir"]))
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException as error:
        status = cli._report(error, False)
    finally:
        sys.stdout.flush()
        os._exit(status)


def _arrange(grief: dict[str, Any], began: Path) -> None:
    """Lets the phase of ``grief`` begin with it."""
    if grief["how"] == "never":
        began.write_text(repr(time.time()))
        time.sleep(GIVEN_UP)
    original = watchdog.enter

    def enter(phase: str, step: int | None = None) -> None:
        original(phase, step)
        if (phase, watchdog.here.step) != (grief["phase"], grief["step"]):
            return
        # Time for the word that this phase has begun.
        time.sleep(0.5)
        began.write_text(repr(time.time()))
        _come(grief["how"])

    watchdog.enter = enter


def _come(how: str) -> None:
    if how == "stall":
        time.sleep(GIVEN_UP)
    elif how == "raise":
        raise cli.RunError("the disk is on fire.")
    elif how == "slow":
        # Longer than any limit, but it gets on.
        for _ in range(35):
            time.sleep(0.2)
            watchdog.progress()
    else:
        os.kill(os.getpid(), signal.Signals[how])


if __name__ == "__main__":
    play(json.loads(Path(sys.argv[1]).read_text()), Path("results.json"), 5)
