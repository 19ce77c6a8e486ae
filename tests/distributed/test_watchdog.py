"""A rank that dies, stops or stalls ends the run within the deadline, with one message that names it and its phase."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.distributed.pairs import lines, play

TIMEOUT = 5.0
CASES: dict[str, dict[str, Any] | None] = {
    "kill 0 in rollout": {"rank": 0, "phase": "rollout", "step": 3, "how": "SIGKILL"},
    "kill 1 in backward": {"rank": 1, "phase": "backward", "step": 3, "how": "SIGKILL"},
    "stop 0 in forward": {"rank": 0, "phase": "forward", "step": 3, "how": "SIGSTOP"},
    "stop 1 in rollout": {"rank": 1, "phase": "rollout", "step": 2, "how": "SIGSTOP"},
    "stall 1 in checkpoint": {"rank": 1, "phase": "checkpoint", "step": 2, "how": "stall"},
    "stall 0 in rollout": {"rank": 0, "phase": "rollout", "step": 3, "how": "stall"},
    "raise 1 in forward": {"rank": 1, "phase": "forward", "step": 3, "how": "raise"},
    "never 1": {"rank": 1, "phase": "start", "step": 0, "how": "never"},
    "slow 0 in rollout": {"rank": 0, "phase": "rollout", "step": 2, "how": "slow"},
}
STARTUP = {"never 1": 4.0, "stall 1 in checkpoint": 8.0}
"""Other limits than 20 s before training; a save has the longer of the two."""
FATE = {
    "kill": "has died: its connection closed without a goodbye",
    "stop": r"has not been heard of for \d+ s",
    "stall": r"has made no progress for LIMIT s \(`trainer\.KEY`\)",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """The outcome and the folder of each case."""
    folder = tmp_path_factory.mktemp("watched")
    changes = {"strategy": "ddp", "timeout": TIMEOUT, "max_steps": 3}
    specification = []
    for name, grief in CASES.items():
        limits = changes | {"startup_timeout": STARTUP.get(name, 20.0)}
        config = tiny.config(**{f"trainer__{key}": value for key, value in limits.items()})
        places = {"folder": str(folder / name), "run_dir": str(folder / name / "run")}
        specification.append({"name": name, "config": config, "grief": grief, **places})
    results = play(folder, specification, at_once=5)
    return lambda name: (results[name], folder / name)


@pytest.mark.parametrize("name", [name for name in CASES if name.split()[0] in FATE])
def test_one_message_names_rank_and_phase(name: str, runs: Callable[[str], tuple[dict[str, Any], Path]]) -> None:
    outcome, folder = runs(name)
    how, rank, _, phase = name.split()
    other, step = 1 - int(rank), CASES[name]["step"]  # type: ignore[index]
    [line] = lines(folder)
    who = rf"\[rank \d\] error: rank {rank} \(host \S+, pid \d+\)"
    limit, key = (STARTUP[name], "startup_timeout") if phase == "checkpoint" else (TIMEOUT, "timeout")
    fate = FATE[how].replace("LIMIT", f"{limit:.0f}").replace("KEY", key)
    assert re.fullmatch(rf"{who} {fate}; its last word was phase '{phase}' at step {step}.*\.", line)
    assert outcome["status"][str(other)] == 1
    # A stopped process can end only when somebody wakes it; then it does, without a word.
    assert outcome["status"][rank] == (-9 if how == "kill" else 1)
    assert max(outcome["seconds"].values()) < limit + 4


def test_the_rank_that_fails_speaks_for_itself(runs: Callable[[str], tuple[dict[str, Any], Path]]) -> None:
    outcome, folder = runs("raise 1 in forward")
    assert lines(folder) == ["[rank 1] error: the disk is on fire."]
    assert set(outcome["status"].values()) == {1}
    assert max(outcome["seconds"].values()) < TIMEOUT


def test_a_rank_that_never_comes_is_named(runs: Callable[[str], tuple[dict[str, Any], Path]]) -> None:
    outcome, folder = runs("never 1")
    assert lines(folder) == ["[rank 0] error: rank 1 has not started within 4 s (`trainer.startup_timeout`)."]
    assert outcome["status"] == {"0": 1, "1": -9}


def test_long_work_is_not_a_stall(runs: Callable[[str], tuple[dict[str, Any], Path]]) -> None:
    outcome, folder = runs("slow 0 in rollout")
    assert outcome["status"] == {"0": 0, "1": 0}
    assert lines(folder) == []
    assert min(outcome["seconds"].values()) > TIMEOUT
