"""``distill export`` of one process's checkpoint, and the metric that keeps the best (shards: tests/distributed)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill import checkpoint
from distill.commands import export
from distill.commands.train import run
from distill.errors import UserError
from tests import tiny

QUIET: dict[str, Any] = {"callbacks__sparsity": None, "callbacks__evaluation": None}


def to_folder(source: Path, out: Path, dtype: str | None = None, network: str = "student") -> dict[str, torch.Tensor]:
    assert export.run({"checkpoint": str(source), "network": network, "out": str(out), "dtype": dtype}, out) == 0
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_the_last_checkpoint_is_the_exported_student(lora: dict[str, int] | None, tmp_path: Path) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    assert run(tiny.config("sft", student__lora=lora, **QUIET), tmp_path / "run") == 0
    found, expected = to_folder(tmp_path / "run", tmp_path / "out"), load_file(tmp_path / "run/model/model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0 if lora is None else 1e-6)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.hidden_size == 8
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()


def test_an_earlier_checkpoint_in_another_dtype(tmp_path: Path) -> None:
    assert run(tiny.config("sft", callbacks__checkpoint__keep_last=9, **QUIET), tmp_path / "run") == 0
    early = tmp_path / "run" / "checkpoints" / "step-00000002"
    found = to_folder(early, tmp_path / "out", "bfloat16")
    state = torch.load(early / "state.ckpt", weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    for name, tensor in found.items():
        assert torch.equal(tensor, state[f"student.{name}"].bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    assert run(tiny.config("sft", **QUIET), tmp_path / "run") == 0
    newest = checkpoint.latest(tmp_path / "run")
    assert newest is not None
    alone = tmp_path / "alone" / "checkpoints" / newest.name
    alone.parent.mkdir(parents=True)
    newest.rename(alone)
    with pytest.raises(
        UserError, match=r"`checkpoint` must be a checkpoint in its run directory \(.*source is missing"
    ):
        to_folder(alone, tmp_path / "out")
    state = alone / "state.ckpt"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"`checkpoint` must be an intact checkpoint directory \(state\.ckpt of rank 0 has"
    ):
        to_folder(alone, tmp_path / "out")
    with pytest.raises(UserError, match="`checkpoint` must be the path of a run or checkpoint directory"):
        to_folder(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_best_checkpoint_survives_a_resume(tmp_path: Path) -> None:
    best = {"every_n_steps": 1, "keep_last": 1, "keep_best": 1, "monitor": "loss", "mode": "max"}
    assert run(tiny.config("sft", trainer__max_steps=3, callbacks__checkpoint=best, **QUIET), tmp_path) == 0
    assert run(tiny.config("sft", callbacks__checkpoint=best, resume="auto", **QUIET), tmp_path) == 0
    losses = {int(record["step"]): record["loss"] for record in tiny.metrics(tmp_path) if "loss" in record}
    worst = max(losses, key=lambda step: losses[step])
    assert worst < 3
    left = sorted(folder.name for folder in (tmp_path / "checkpoints").glob("step-*"))
    assert left == [f"step-{worst:08d}", "step-00000006"]


def test_a_mistyped_metric_costs_one_step(tmp_path: Path) -> None:
    best = {"keep_best": 1, "monitor": "los"}
    with pytest.raises(UserError, match=r"`callbacks\.checkpoint\.monitor` must be a metric .*did you mean 'loss'"):
        run(tiny.config("sft", callbacks__checkpoint=best, **QUIET), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_without_its_metric_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = {"every_n_steps": 2, "keep_best": 1, "keep_last": 1, "monitor": "eval/accuracy"}
    settings = {"callbacks__checkpoint": best, "callbacks__evaluation": {"every_n_steps": 4}}
    with caplog.at_level(logging.WARNING):
        assert run(tiny.config("sft", callbacks__sparsity=None, **settings), tmp_path) == 0
    told = [record for record in caplog.records if "`eval/accuracy` was not measured" in record.getMessage()]
    # Measured at 4 and at the last step, 6.
    assert len(told) == 1
