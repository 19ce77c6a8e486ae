"""Shards read cold: parameters that do not divide by the ranks, and pickles that would run something."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import universal
from distill.errors import UserError

SHAPES = [{"student.a": (3, 5), "student.b": (2, 2)}, {"student.c": (7,)}]
"""Two flat vectors; no parameter divides by three ranks."""
RANKS = 3
TRUTH = {
    kind: {name: torch.randn(shape) for shapes in SHAPES for name, shape in shapes.items()}
    for kind in ("master", "exp_avg")
}


def zero3(kind: str) -> list[list[Tensor]]:
    """Each rank's flat vectors: every parameter is cut over the ranks and filled up."""
    found: list[list[Tensor]] = [[] for _ in range(RANKS)]
    for shapes in SHAPES:
        parts: list[list[Tensor]] = [[] for _ in range(RANKS)]
        for name in shapes:
            flat = TRUTH[kind][name].reshape(-1)
            size = math.ceil(len(flat) / RANKS)
            padded = torch.cat([flat, torch.full((size * RANKS - len(flat),), math.nan)])
            for rank in range(RANKS):
                parts[rank].append(padded[rank * size : (rank + 1) * size])
        for rank in range(RANKS):
            found[rank].append(torch.cat(parts[rank]))
    return found


def zero2(kind: str) -> list[list[Tensor]]:
    """Each rank's part of the vectors: all parameters one after another, filled up and cut."""
    found: list[list[Tensor]] = [[] for _ in range(RANKS)]
    for shapes in SHAPES:
        flat = torch.cat([TRUTH[kind][name].reshape(-1) for name in shapes])
        size = math.ceil(len(flat) / RANKS)
        padded = torch.cat([flat, torch.full((size * RANKS - len(flat),), math.nan)])
        for rank in range(RANKS):
            end = len(flat) if kind == "master" else len(padded)
            found[rank].append(padded[rank * size : min((rank + 1) * size, end)])
    return found


def write(folder: Path, stage: int) -> None:
    cut = zero3 if stage == 3 else zero2
    masters, moments = cut("master"), cut("exp_avg")
    inside = folder / "checkpoint"
    inside.mkdir(parents=True)
    groups = [{"lr": 0.1, "weight_decay": decay, "params": [index]} for index, decay in enumerate((0.5, 0.0))]
    model = {
        "module": {name: torch.empty(0) for name in (*TRUTH["master"], "student.tied")} | {"student.n": torch.ones(2)},
        "param_shapes": [{name: torch.Size(shape) for name, shape in shapes.items()} for shapes in SHAPES],
        "shared_params": {"student.tied": "student.a"},
        "frozen_param_shapes": None,
        "ds_version": "x",
        "global_step": 4,
    }
    for rank in range(RANKS):
        state = {i: {"step": torch.tensor(4.0), "exp_avg": moments[rank][i]} for i in range(2)}
        inner = {"state": state, "param_groups": groups}
        vectors: dict[str, Any] = (
            {universal.FLAT3: masters[rank], "optimizer_state_dict": inner}
            if stage == 3
            else {universal.FLAT12: masters[rank], "base_optimizer_state": inner}
        )
        optimizer = {"optimizer_state_dict": vectors | {"partition_count": RANKS}}
        torch.save(optimizer, inside / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            torch.save(model, inside / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage != 3:
        torch.save(model, inside / "mp_rank_00_model_states.pt")


@pytest.mark.parametrize("stage", [2, 3])
def test_ragged_shards_become_whole_parameters(stage: int, tmp_path: Path) -> None:
    write(tmp_path, stage)
    state = universal.load(tmp_path)
    assert state.client == {"global_step": 4}
    assert state.shapes == {
        **{name: tuple(tensor.shape) for name, tensor in TRUTH["master"].items()},
        "student.tied": (3, 5),
        "student.n": (2,),
    }
    assert [(group.settings["weight_decay"], group.names) for group in state.groups] == [
        (0.5, ("student.a", "student.b")),
        (0.0, ("student.c",)),
    ]
    for name, tensor in TRUTH["master"].items():
        assert torch.equal(state.weight(name), tensor)
        assert torch.equal(state.moments(name)["exp_avg"], TRUTH["exp_avg"][name])
    assert torch.equal(state.weight("student.tied"), TRUTH["master"]["student.a"])


def test_every_parameter_counts_its_own_steps(tmp_path: Path) -> None:
    write(tmp_path, 2)
    [optimizer] = universal.whole(universal.load(tmp_path))["optimizer_states"]
    steps = [state["step"] for state in optimizer["state"].values()]
    steps[0] += 1
    assert [float(step) for step in steps] == [5, 4, 4]


def test_a_missing_rank_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "checkpoint" / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match="2 files of optimizer states, not 3"):
        universal.load(tmp_path)


def make_folder(path: str) -> None:
    os.mkdir(path)


class Exploit:
    """Makes a folder when it is unpickled by a reader that runs what it is told."""

    def __init__(self, make: Any, path: Path) -> None:
        self.call = make, (str(path),)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call  # type: ignore[no-any-return]


@pytest.mark.parametrize(("make", "refused"), [(os.mkdir, True), (os.makedirs, True), (make_folder, False)])
def test_no_code_of_a_pickle_runs(make: Any, refused: bool, tmp_path: Path) -> None:
    write(tmp_path, 2)
    model = tmp_path / "checkpoint" / "mp_rank_00_model_states.pt"
    content, trap = torch.load(model), tmp_path / "trap"
    torch.save(content | {"ds_config": Exploit(make, trap)}, model)
    if refused:
        with pytest.raises(UserError, match="more than tensors and plain values"):
            universal.load(tmp_path)
    else:
        assert universal.load(tmp_path).shapes["student.a"] == (3, 5)
    assert not trap.exists()
    torch.load(model, weights_only=False)
    assert trap.exists()
