"""A rank is killed, stopped or told to end at random moments: nothing hangs, and the resumed run ends at the same bits.

``CHAOS=N`` sets how often, ``CHAOS_SEED`` with what; a failure prints the case, which ``python -m
tests.distributed.watched`` repeats.
"""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.distributed.pairs import lines, play

TIMES, SEED = int(os.environ.get("CHAOS", "50")), int(os.environ.get("CHAOS_SEED", "0"))
TIMEOUT, STARTUP = 8.0, 20.0
AT_ONCE, BATCH = 3, 10
SLACK = 6.0
"""Seconds to settle, to take turns and to flush, on a busy machine."""
LOST = r"\[rank \d\] error: rank {rank} \(host \S+, pid \d+\) has .*; its last word was phase '\w+' at step \d+.*\."
NEVER_CAME = r"\[rank \d\] error: rank {rank} has (died in phase 'start'|not started within|not answered at).*"


def case(folder: Path, name: str, run_dir: Path, grief: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    limits = {"trainer__strategy": "ddp", "trainer__timeout": TIMEOUT, "trainer__startup_timeout": STARTUP}
    config = tiny.config(**limits, trainer__max_steps=40, **changes)
    return {"name": name, "config": config, "folder": str(folder / name), "run_dir": str(run_dir), "grief": grief}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_run_hangs_and_every_one_resumes_to_the_same_bits(tmp_path: Path) -> None:
    # Also the clock: how long a run takes here, beside others.
    names = [f"whole{i}" for i in range(AT_ONCE)]
    whole = play(tmp_path, [case(tmp_path, name, tmp_path / f"run-{name}", None) for name in names], AT_ONCE)
    seconds = min(whole[name]["whole"] for name in names)
    weights = (tmp_path / f"run-{names[0]}" / "model" / "model.safetensors").read_bytes()
    chance, wrong = random.Random(SEED), {}
    print(f"seed {SEED}, a whole run takes {seconds:.1f} s")
    for first in range(0, TIMES, BATCH):
        griefs = {f"chaos{i}": misfortune(chance, seconds) for i in range(first, min(first + BATCH, TIMES))}
        for name, problems in strike(tmp_path, griefs, weights).items():
            print(name, griefs[name], lines(tmp_path / name), problems or "ok", sep="\n    ", flush=True)
            if problems:
                wrong[name] = problems
    assert not wrong


def misfortune(chance: random.Random, seconds: float) -> dict[str, Any]:
    how = chance.choice(["SIGKILL", "SIGSTOP", "SIGTERM"])
    return {"rank": chance.randrange(2), "how": how, "after": chance.uniform(0.0, 0.5 * seconds)}


def strike(folder: Path, griefs: dict[str, dict[str, Any]], weights: bytes) -> dict[str, list[str]]:
    """What is wrong with each run that was struck, and with the one that resumed it."""
    runs = {name: folder / f"run-{name}" for name in griefs}
    struck = play(folder, [case(folder, name, runs[name], grief) for name, grief in griefs.items()], AT_ONCE)
    again = [case(folder, f"{name}-again", runs[name], None, resume="auto") for name in griefs]
    resumed = play(folder, again, AT_ONCE)
    found = {}
    for name, grief in griefs.items():
        found[name] = judged(grief, struck[name], lines(folder / name))
        after = resumed[f"{name}-again"]
        if after["status"] != {"0": 0, "1": 0}:
            found[name].append(f"resumed: {after} {lines(folder / f'{name}-again')}")
        elif (runs[name] / "model" / "model.safetensors").read_bytes() != weights:
            found[name].append("other weights")
    return found


def judged(grief: dict[str, Any], outcome: dict[str, Any], said: list[str]) -> list[str]:
    """What is wrong with the end of a run that was struck."""
    status = outcome["status"]
    rank, other = str(grief["rank"]), str(1 - grief["rank"])
    problems = []
    if outcome["seconds"] and max(outcome["seconds"].values()) > max(TIMEOUT, 2 * STARTUP) + SLACK:
        problems.append("not within the deadline")
    if not outcome["seconds"] or status[other] == 0:
        # The signal came when there was nothing left to wait for.
        return problems
    if grief["how"] == "SIGTERM" and status == {"0": 143, "1": 143}:
        expected = "SIGTERM: "
        return problems if len(said) == 1 and said[0].startswith(expected) else [*problems, f"said: {said}"]
    ends = {"SIGKILL": -9, "SIGSTOP": 1, "SIGTERM": -15}[grief["how"]]
    pattern = "|".join(text.format(rank=rank) for text in (LOST, NEVER_CAME))
    if grief["how"] == "SIGTERM" and status[rank] == 143:
        # Before there is a step to finish: the rank says so and ends at once.
        pattern, ends = "SIGTERM: stopping at once.", 143
    if grief["how"] == "SIGSTOP":
        # Before all have met, a rank that wakes cannot hear that it was given up, and says what it finds; at the very
        # end it may have had nothing left to do.
        others = [line for line in said if not line.startswith(f"[rank {rank}] ")]
        told = " ".join(others)
        said = others if "phase 'start'" in told or "not started" in told else said
        ends = status[rank] if "phase 'export'" in told else ends
    if (status[rank], status[other]) != (ends, 1):
        problems.append(f"statuses {status}")
    if len(said) != 1 or not re.fullmatch(pattern, said[0]):
        problems.append(f"said: {said}")
    return problems
