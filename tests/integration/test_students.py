"""Students of every kind through whole runs: loaded ones, every precision, adapters, models with a padded head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.commands.train import run
from distill.data.char_tokenizer import build_tokenizer
from distill.module import DistillModule
from distill.types import Batch
from tests import tiny


@pytest.fixture
def loaded(tmp_path: Path) -> dict[str, Any]:
    """Settings of a student that an earlier run has trained."""
    dropout = {**tiny.llama(8), "attention_dropout": 0.5}
    assert run(tiny.config("sft", student__config=dropout, trainer__max_steps=1), tmp_path / "first") == 0
    return {"student__config": None, "student__tokenizer": None, "student__path": str(tmp_path / "first" / "model")}


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> set[tuple[bool, ...]]:
    """The modes of the student's modules during training steps."""
    seen: set[tuple[bool, ...]] = set()
    real = DistillModule.training_step

    def spy(module: DistillModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        seen.add(tuple({part.training for part in module.student.modules()}))
        return real(module, batch, batch_idx)

    monkeypatch.setattr(DistillModule, "training_step", spy)
    return seen


@pytest.mark.parametrize("recipe", ["sft", "opd"])
def test_a_loaded_student_trains_in_training_mode(
    recipe: str, loaded: dict[str, Any], modes: set[tuple[bool, ...]], tmp_path: Path
) -> None:
    assert run(tiny.config(recipe, **loaded), tmp_path / "second") == 0
    assert modes == {(True,)}, "dropout and activation checkpoints are off in evaluation mode"


@pytest.mark.parametrize("recipe", tiny.RECIPES)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_every_precision(precision: str, recipe: str, tmp_path: Path) -> None:
    options = {"trainer__precision": precision, "trainer__micro_batch_size": 5}
    assert run(tiny.config(recipe, **options), tmp_path / "narrow") == 0
    assert run(tiny.config(recipe), tmp_path / "full") == 0
    narrow, full = tiny.metrics(tmp_path / "narrow"), tiny.metrics(tmp_path / "full")
    assert narrow[1]["loss"] == pytest.approx(full[1]["loss"], rel=0.05)
    weights = load_file(tmp_path / "narrow" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {
        torch.bfloat16 if precision == "bf16-true" else torch.float32
    }


def test_fresh_rollouts_have_a_ratio_of_one_in_bf16(tmp_path: Path) -> None:
    options = {"objective__divergence": "sampled_token", "objective__ratio_clip": 1.05}
    assert run(tiny.config("opd", trainer__precision="bf16-true", **options), tmp_path) == 0
    assert all(record["clip_share"] == 0.0 for record in tiny.metrics(tmp_path) if "loss" in record)


def test_an_adapter_with_activation_checkpoints_in_mixed_precision(tmp_path: Path) -> None:
    adapter = {"student__lora": {"r": 2}, "student__gradient_checkpointing": True, "optimizer__lr": 0.1}
    config = tiny.config("opd", student__dtype="bfloat16", trainer__precision="bf16-mixed", **adapter)
    assert run(config, tmp_path) == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "model"))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if "_proj" in name}
    record = tiny.metrics(tmp_path)[-1]
    changed = sum(int((after[name] != before[name]).sum()) for name in after)
    total = sum(tensor.numel() for name, tensor in after.items() if name != "lm_head.weight")
    assert record["sparsity/bf16/0"] == pytest.approx(1 - changed / total)


def test_rows_that_no_token_has_stay_as_they_are(tmp_path: Path) -> None:
    padded = {**tiny.llama(8), "vocab_size": 32, "tie_word_embeddings": False}
    assert run(tiny.config("opd", student__config=padded, optimizer__weight_decay=0.0), tmp_path) == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "model"))
    tokens = len(build_tokenizer())
    assert tokens < 32
    assert not torch.equal(before["lm_head.weight"][:tokens], after["lm_head.weight"][:tokens])
    assert torch.equal(before["lm_head.weight"][tokens:], after["lm_head.weight"][tokens:])
    assert 0 < tiny.metrics(tmp_path)[0]["eval/dropped_mass/student"] < 1


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_another_family_end_to_end(family: str, tmp_path: Path) -> None:
    sizes = {
        "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64},
        "mamba": {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4},
    }
    assert run(tiny.config("opd", student__config={"model_type": family, **sizes[family]}), tmp_path) == 0
    losses = [record["loss"] for record in tiny.metrics(tmp_path) if "loss" in record]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_pruned_student_may_learn_from_what_it_was_cut_out_of(tmp_path: Path) -> None:
    """The same path is not the same model then: no start-up check expects a KL of 0."""
    deep = {"path": "package://distill/assets/teacher"}
    config = tiny.config("opd", student=deep | {"layers": [0, 3]}, teacher=deep | {"kind": "frozen"})
    assert run(config, tmp_path / "run") == 0
    assert tiny.metrics(tmp_path / "run")[0]["eval/reverse_kl"] > 0.1
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {name.split(".")[2] for name in exported if ".layers." in name} == {"0", "1"}
