"""What a step trained on, as text: marked, at the right steps, without a double line after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.callbacks.rollouts import described
from distill.commands.train import run
from distill.types import Row
from tests import tiny

LETTERS = "abcdefgh"


def decode(ids: list[int]) -> str:
    """One letter per token, but 6 and 7 are the halves of one."""
    return "".join(LETTERS[i] for i in ids).replace("gh", "é").replace("g", "\ufffd")


def row(ids: list[int], replaced: list[bool] | None) -> Row:
    mask = torch.arange(len(ids)) >= 2
    marks = None if replaced is None else torch.tensor(replaced)
    return Row(0, torch.tensor(ids), mask, stopped=False, replaced=marks)


@pytest.mark.parametrize(
    ("ids", "replaced", "completion"),
    [
        ([0, 1, 2, 3, 4], [False, False, False], "cde"),
        ([0, 1, 2, 3, 4], [True, False, True], "⟦c⟧d⟦e⟧"),
        ([0, 1, 2, 3, 4], [False, True, True], "c⟦de⟧"),
        ([0, 1, 6, 7, 4], [True, True, False], "⟦é⟧e"),
        ([0, 1], [], ""),
    ],
)
def test_replaced_tokens_are_marked(ids: list[int], replaced: list[bool], completion: str) -> None:
    found = described(row(ids, replaced), decode)
    assert found == {"prompt": "ab", "completion": completion, "stopped": False, "replaced": sum(replaced)}


def test_a_rollout_without_a_teacher_has_nothing_to_mark() -> None:
    assert described(row([0, 1, 2, 3], None), decode) == {"prompt": "ab", "completion": "cd", "stopped": False}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def settings(recipe: str, **changes: Any) -> dict[str, Any]:
    options = {"callbacks__rollouts": {"every_n_steps": 4, "samples": 3}, "callbacks__evaluation": None}
    return tiny.config(recipe, **options, **changes)


def test_steps_rows_and_a_resumed_run(tmp_path: Path) -> None:
    assert run(settings("speculative_kd"), tmp_path / "straight") == 0
    found = lines(tmp_path / "straight")
    assert [record["step"] for record in found] == [1] * 3 + [4] * 3 + [6] * 3
    total = sum(record["replaced"] for record in found)
    assert total > 0
    assert sum(record["completion"].count("⟦") for record in found) <= total
    assert run(settings("speculative_kd", trainer__max_steps=5), tmp_path / "resumed") == 0
    assert run(settings("speculative_kd", resume="auto"), tmp_path / "resumed") == 0
    assert [record for record in lines(tmp_path / "resumed") if record["step"] != 5] == found


def test_the_datas_own_completions_are_not_repeated(tmp_path: Path) -> None:
    assert run(settings("offline_kd"), tmp_path / "run") == 0
    assert not (tmp_path / "run" / "rollouts.jsonl").exists()
