"""Which subspace gradients are confined to, that they are, and what is recorded of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.callbacks.confine import KEYS, GradientSubspace
from distill.callbacks.steps import StepCallback
from distill.commands.train import run
from distill.errors import RunError, UserError
from tests import tiny
from tests.unit.callbacks.test_sparsity import Module, llama

NAME = "model.layers.0.mlp.up_proj.weight"
OPTIONS: dict[str, Any] = {"warmup_steps": 2, "rank": 2, "side": "right", "every_n_steps": 1}


class Sgd(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class History(StepCallback):
    """The weights before the first step and after each."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = [dict(llama().named_parameters())]

    def on_step(self, trainer: Any, pl_module: Any, step: int) -> None:
        self.weights.append({name: p.detach().clone() for name, p in pl_module.student.named_parameters()})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def fit(module: Module, callbacks: list[L.Callback], max_steps: int) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=max_steps, callbacks=callbacks, enable_checkpointing=False, **quiet
    )
    data = torch.randint(0, 11, (64, 6), generator=torch.Generator().manual_seed(0))
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))


def trained(source: Path, module: Module, steps: int = 4, **options: Any) -> list[dict[str, Tensor]]:
    history = History()
    fit(module, [GradientSubspace(source, **{**OPTIONS, **options}), history], steps)
    return history.weights


def projector(update: Tensor, k: int) -> tuple[Tensor, Tensor]:
    u, _, v = torch.linalg.svd(update.double(), full_matrices=False)
    return u[:, :k] @ u[:, :k].T, v[:k].T @ v[:k]


@pytest.mark.parametrize("side", ["right", "both"])
def test_steps_after_the_warm_up_stay_in_the_subspace_of_the_update(source: Path, side: str) -> None:
    module = Sgd(llama())
    weights = trained(source, module, side=side)
    left, right = projector(weights[2][NAME] - weights[0][NAME], 2)
    free, confined = (weights[t][NAME].double() - weights[t - 1][NAME].double() for t in (2, 3))
    outside = [float((step @ right - step).norm() / step.norm()) for step in (free, confined)]
    assert outside[0] > 1e-2, "the warm-up is free"
    assert outside[1] < 1e-4
    assert (float((left @ confined - confined).norm() / confined.norm()) < 1e-4) == (side == "both")
    norms = [weights[t]["model.norm.weight"] for t in (2, 3)]
    assert not torch.equal(*norms), "vectors are free"
    assert module.records[3]["subspace/step_energy_outside"] < 1e-6
    assert list(module.records) == [3, 4]


def test_records_what_it_documents_by_definition(source: Path) -> None:
    module = Module(llama(), lr=1e-2)
    weights = trained(source, module)
    record = module.records[4]
    documented = {key for key in KEYS if key != "subspace/microbatch_gradient_energy"}
    assert set(record) == documented
    matrices = [name for name, value in weights[0].items() if value.ndim == 2]
    sums = {"step": [0.0, 0.0], "update": [0.0, 0.0]}
    similar, top = [], []
    for name in matrices:
        early, now, before = (weights[t][name].double() - weights[0][name].double() for t in (2, 4, 3))
        _, right = projector(early, 2)
        for kind, moved in (("step", now - before), ("update", now)):
            sums[kind][0] += float((moved @ right).square().sum())
            sums[kind][1] += float(moved.square().sum())
        similar.append(float(torch.trace(projector(now, 2)[1] @ right)) / 2)
        values = torch.linalg.svdvals(now).square()
        top.append(float(values[:2].sum() / values.sum()))
    assert record["subspace/step_energy_outside"] == pytest.approx(1 - sums["step"][0] / sums["step"][1], rel=1e-3)
    assert record["subspace/step_energy_outside"] > 0.01, "Adam leaves the subspace"
    assert record["subspace/update_energy"] == pytest.approx(sums["update"][0] / sums["update"][1], rel=1e-4)
    assert record["subspace/similarity"] == pytest.approx(sum(similar) / len(similar), rel=1e-4)
    assert record["subspace/top_energy"] == pytest.approx(sum(top) / len(top), rel=1e-4)
    assert record["subspace/stable_rank"] > 1
    assert 0 < record["subspace/gradient_energy"] < 1


def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    def go(name: str, **changes: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        common = {
            "callbacks__gradient_subspace": {**OPTIONS, "warmup_steps": 3, "every_n_steps": 2},
            "callbacks__sparsity": None,
            "callbacks__evaluation": None,
            "callbacks__checkpoint": {"every_n_steps": 1, "keep_last": 9},
        }
        assert run(tiny.config("sft", **common, **changes), tmp_path / name) == 0
        return load_file(tmp_path / name / "model" / "model.safetensors"), tiny.metrics(tmp_path / name)

    whole, expected = go("whole")
    key = "subspace/step_energy_outside"
    assert [record["step"] for record in expected if key in record] == [4, 6]
    # At the step that chooses, and where the next one is looked at.
    for step in (3, 5):
        weights, records = go(f"from{step}", resume=str(tmp_path / f"whole/checkpoints/step-{step:08d}"))
        assert all(torch.equal(weights[name], value) for name, value in whole.items())
        assert [r[key] for r in records if key in r] == [r[key] for r in expected if key in r and r["step"] > step]


def test_what_has_not_moved_is_refused(source: Path) -> None:
    with pytest.raises(RunError, match=r"has not moved by step 2.*warmup_steps` must be longer"):
        trained(source, Module(llama(), lr=0.0))


def test_a_student_without_trained_matrices_is_refused(source: Path) -> None:
    model = llama()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    with pytest.raises(UserError, match=r"`callbacks\.gradient_subspace` must be null"):
        trained(source, Module(model))


def test_a_checkpoint_of_another_subspace_or_of_none_is_refused(source: Path) -> None:
    callback = GradientSubspace(source, **OPTIONS)
    saved = {"choice": {"warmup_steps": 2, "rank": 4, "side": "right"}, "subspaces": {NAME: [torch.eye(3)]}}
    with pytest.raises(UserError, match=r"gradient_subspace\.rank` must be 4.*but is 2"):
        callback.load_state_dict(saved)
    trainer: Any = SimpleNamespace(global_step=3, max_steps=9)
    module: Any = SimpleNamespace(device="cpu")
    with pytest.raises(UserError, match=r"warmup_steps` must be at least 3.*but is 2"):
        callback.on_train_start(trainer, module)
