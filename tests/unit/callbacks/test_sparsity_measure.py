"""What a measurement compares with: θ₀, the last measurement, and a structureless update of the same norm."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.analysis.nulls import rounding_null
from distill.analysis.sparsity import compare, total_pair
from distill.callbacks.snapshots import steps
from distill.callbacks.sparsity import UpdateSparsity, adopt, forget_after

SHAPES = {"layers.0.mlp.up_proj": (96, 64), "layers.1.self_attn.q_proj": (64, 64), "norm": (64,), "conv": (4, 3, 2, 2)}


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            *parents, _ = name.split(".")
            owner: Any = self
            for parent in parents:
                if not hasattr(owner, parent):
                    owner.add_module(parent, nn.Module())
                owner = getattr(owner, parent)
            owner.register_parameter(_leaf(name), nn.Parameter((0.02 * torch.randn(shape, generator=draw)).to(dtype)))
        self.register_parameter("nothing", nn.Parameter(torch.empty(0, 3, dtype=dtype)))
        self.register_parameter("scalar", nn.Parameter(torch.tensor(0.5, dtype=dtype)))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


class Run:
    """Steps of ``callback`` over weights that move by noise."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.model = Model(dtype)
        self.folder = folder / "sparsity"
        (folder / "source").mkdir(parents=True, exist_ok=True)
        self.start = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        save_file(self.start, folder / "source" / "model.safetensors")
        self.records: dict[int, dict[str, float]] = {}
        self.options = {"source": folder / "source", "every_n_steps": 2, "folder": self.folder, "since_last": True}
        self.options |= options
        self.attempt(0)

    def attempt(self, step: int, state: dict[str, Any] | None = None) -> None:
        self.callback = UpdateSparsity(**self.options)
        self.trainer: Any = SimpleNamespace(global_step=step, max_steps=99, is_global_zero=True, loggers=[])
        self.module: Any = SimpleNamespace(lm=SimpleNamespace(model=self.model), record=self._record)
        self.callback.setup(self.trainer, self.module, "fit")
        if state is not None:
            self.callback.load_state_dict(state)
        self.callback.on_train_start(self.trainer, self.module)

    def _record(self, metrics: dict[str, float]) -> None:
        self.records[self.trainer.global_step] = metrics

    def step(self, to: int) -> None:
        while self.trainer.global_step < to:
            self.trainer.global_step += 1
            draw = torch.Generator().manual_seed(self.trainer.global_step)
            with torch.no_grad():
                for value in self.model.parameters():
                    value.add_((3e-5 * torch.randn(value.shape, generator=draw)).to(value.dtype))
            self.callback.on_train_batch_end(self.trainer, self.module, None, None, 0)


def weights(run: Run) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.model.named_parameters()}


def test_since_last_is_the_difference_of_two_measurements(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(2)
    before = weights(run)
    first = run.records[2]
    assert first["sparsity_since_last/bf16/1e-5"] == first["sparsity/bf16/1e-5"], "at first, since the start"
    run.step(4)
    whole = total_pair(compare(before[name], value) for name, value in weights(run).items())
    for precision in ("bf16", "fp32"):
        for label in ("0", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4"):
            key = f"sparsity_since_last/{precision}/{label}"
            assert run.records[4][key] == whole[precision].sparsity(float(label))
    assert run.records[4]["update_since_last/relative_norm_fp32"] == whole["fp32"].relative_norm
    pair = compare(before["layers.1.self_attn.q_proj"], weights(run)["layers.1.self_attn.q_proj"])
    assert run.records[4]["sparsity_since_last/layer/1"] == pair["bf16"].sparsity()
    assert run.records[4]["sparsity_since_last/bf16/1e-5"] > run.records[4]["sparsity/bf16/1e-5"]
    assert steps(run.folder / "weights") == [4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_null_is_that_of_the_movement(dtype: torch.dtype, tmp_path: Path) -> None:
    run = Run(tmp_path, dtype)
    run.step(2)
    drawn = []
    for name, value in ((name, value) for name, value in weights(run).items() if value.numel()):
        norm = math.sqrt(compare(run.start[name], value)["fp32"].update_energy)
        drawn.append(rounding_null(name, run.start[name], norm, dtype, seed=0))
    whole = total_pair(drawn)
    for precision in ("bf16", "fp32"):
        for label in ("0", "1e-6", "1e-5", "1e-4"):
            found = run.records[2][f"sparsity_null/{precision}/{label}"]
            assert found == pytest.approx(whole[precision].sparsity(float(label)), abs=0.02), (precision, label)
    # What moves here is noise itself.
    assert run.records[2]["sparsity_null/bf16/1e-5"] == pytest.approx(run.records[2]["sparsity/bf16/1e-5"], abs=0.02)


def test_an_attempt_that_resumes_goes_on_from_the_snapshot(tmp_path: Path) -> None:
    straight = Run(tmp_path / "straight")
    straight.step(8)
    run = Run(tmp_path / "resumed", saved=lambda: [5])
    run.step(5)
    state, there = run.callback.state_dict(), weights(run)
    run.step(8)
    assert steps(run.folder / "weights") == [4, 8], "4 is what the checkpoint of step 5 needs"
    forget_after(run.folder, 5)
    assert steps(run.folder / "weights") == [4]
    assert sorted(path.name for path in run.folder.glob("*.csv")) == ["step_000002.csv", "step_000004.csv"]
    run.model.load_state_dict(there)
    run.attempt(5, state)
    run.step(8)
    for step in (6, 8):
        ours, theirs = (dict(each.records[step]) for each in (run, straight))
        assert ours.pop("time/sparsity") > 0
        del theirs["time/sparsity"]
        assert ours == theirs


@pytest.mark.parametrize("gone", ["removed", "damaged", "untold"])
def test_without_the_snapshot_one_warning_takes_the_place_of_the_keys(
    gone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.step(2)
    state = run.callback.state_dict()
    file = run.folder / "weights" / "step-00000002" / "rank-0.bin"
    if gone == "removed":
        forget_after(run.folder, 0)
    elif gone == "damaged":
        file.write_bytes(b"\x01" + file.read_bytes()[1:])
    with caplog.at_level(logging.WARNING):
        run.attempt(3, None if gone == "untold" else state)
        run.step(6)
    told = [record.getMessage() for record in caplog.records if "since the last one" in record.getMessage()]
    assert len(told) == 1
    assert not any("since_last" in key for key in run.records[4])
    assert "sparsity_null/bf16/1e-5" in run.records[4]
    assert any("since_last" in key for key in run.records[6])


def test_switched_off_nothing_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, since_last=False)
    run.step(4)
    assert not any("since_last" in key for key in run.records[4])
    assert sorted(path.name for path in run.folder.iterdir()) == ["step_000002.csv", "step_000004.csv"]


def test_a_run_in_another_folder_takes_its_snapshot_along(tmp_path: Path) -> None:
    run = Run(tmp_path / "one")
    run.step(4)
    adopt(tmp_path / "two" / "sparsity", run.folder, 3)
    assert not (tmp_path / "two").exists(), "4 is not yet measured at step 3"
    adopt(tmp_path / "two" / "sparsity", run.folder, 5)
    assert steps(tmp_path / "two" / "sparsity" / "weights") == [4]
