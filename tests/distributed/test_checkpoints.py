"""Sharded checkpoints: resumed bit for bit, under another strategy or world size, after a kill, and never damaged."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill import checkpoint
from distill.commands import export
from distill.commands.train import run
from distill.errors import UserError
from tests import tiny
from tests.distributed.worker import launch, train_all
from tests.processes import Ranks

STEPS, SAVED = 6, 2
SAME = [("zero1", "zero1"), ("zero3", "zero3"), ("zero3_bf16", "zero3_bf16")]
OTHER = [
    ("single", "zero1"),
    ("single", "zero3"),
    ("ddp", "zero3"),
    ("zero1", "zero2"),
    ("zero1", "zero3"),
    ("zero1", "ddp"),
    ("zero3", "zero1"),
    ("zero3", "ddp"),
    ("zero1", "single"),
    ("zero3", "single"),
    ("zero3_bf16", "zero1_bf16"),
    ("zero1", "zero3_offloaded"),
    ("zero3", "zero3_offloaded"),
]
"""Strategy that saves, strategy that resumes; all have two ranks but the single process."""


def settings(strategy: str, **changes: Any) -> dict[str, Any]:
    """Micro-batches that do not divide evenly, two parameter groups that differ by their weight decay."""
    name, _, variant = strategy.partition("_")
    off = {"callbacks__sparsity": {"every_n_steps": 2}, "callbacks__evaluation": None}
    options = {
        "trainer__max_steps": STEPS,
        "trainer__micro_batch_size": 4,
        "trainer__precision": "bf16-mixed" if variant == "bf16" else "32-true",
        "trainer__offload": variant == "offloaded",
        "optimizer__weight_decay": 0.1,
        "callbacks__checkpoint": {"every_n_steps": SAVED, "keep_last": 9},
    }
    return tiny.config("sft", trainer__strategy=name, **(options | off | changes))


def saved(folder: Path, step: int = SAVED) -> str:
    return str(folder / "checkpoints" / f"step-{step:08d}")


def losses(run_dir: Path) -> list[float]:
    return [record["loss"] for record in tiny.metrics(run_dir) if "loss" in record]


def measured(run_dir: Path) -> dict[int, dict[str, float]]:
    """What each step of a run says of its update."""
    kinds = ("sparsity", "update")
    records = {int(record["step"]): record for record in tiny.metrics(run_dir)}
    found = {step: {k: v for k, v in record.items() if k.startswith(kinds)} for step, record in records.items()}
    return {step: record for step, record in found.items() if record}


def weights(source: Path, out: Path) -> dict[str, torch.Tensor]:
    """The masters in the newest checkpoint of a run."""
    assert export.run({"network": "student", "checkpoint": str(source), "out": str(out), "dtype": "float32"}, out) == 0
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted runs of every strategy, named by it, and ``FROM-TO`` resumed from the middle of them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.set_num_threads(1)
    assert run(settings("single"), folder / "single") == 0
    pairs = [*SAME, *OTHER]
    alone = [pair for pair in pairs if pair[1] == "single"]
    together = [pair for pair in pairs if pair[1] != "single"]
    sources = sorted({source for source, _ in pairs} - {"single"})
    straight = [(settings(source), folder / source) for source in sources]
    resumed = [(settings(b, resume=saved(folder / a)), folder / f"{a}-{b}") for a, b in together]
    launch([*straight, *resumed], folder)
    for a, b in alone:
        assert run(settings(b, resume=saved(folder / a)), folder / f"{a}-{b}") == 0
    return folder


@pytest.mark.parametrize(("strategy", "again"), SAME)
def test_the_same_layout_resumes_bit_for_bit(strategy: str, again: str, runs: Path, tmp_path: Path) -> None:
    assert losses(runs / f"{strategy}-{again}") == losses(runs / strategy)[SAVED:]
    expected = measured(runs / strategy)
    assert set(expected) == {2, 4, 6}
    assert any(key.startswith("sparsity_since_last/") for key in expected[4])
    assert measured(runs / f"{strategy}-{again}") == {step: expected[step] for step in (4, 6)}
    resumed = weights(runs / f"{strategy}-{again}", tmp_path / "resumed")
    for name, tensor in weights(runs / strategy, tmp_path / "straight").items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.parametrize(("before", "after"), OTHER)
def test_another_layout_goes_on_as_one_process_would(before: str, after: str, runs: Path, tmp_path: Path) -> None:
    bf16 = before.endswith("bf16")
    straight = runs / (before if bf16 else "single")
    assert losses(runs / f"{before}-{after}") == pytest.approx(losses(straight)[SAVED:], abs=1e-3 if bf16 else 1e-5)
    resumed = weights(runs / f"{before}-{after}", tmp_path / "resumed")
    moved = 0.0
    start = load_file(straight / "source" / "model.safetensors")
    for name, tensor in weights(straight, tmp_path / "straight").items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-3 if bf16 else 1e-5)
        moved = max(moved, float((tensor - start[name]).abs().max()))
    assert moved > 1e-2


@pytest.mark.parametrize(("before", "after"), OTHER)
def test_another_layout_knows_the_last_measurement(before: str, after: str, runs: Path) -> None:
    """Its snapshot is in the pieces that the ranks of the earlier attempt had; θ₀ in its place would differ by half."""
    bf16 = before.endswith("bf16")
    straight = measured(runs / (before if bf16 else "single"))
    found = measured(runs / f"{before}-{after}")
    assert set(found) == {4, 6}
    for step, record in found.items():
        assert set(record) == set(straight[step])
        for key in ("update_since_last/relative_norm", "update_since_last/relative_norm_fp32"):
            assert record[key] == pytest.approx(straight[step][key], rel=0.02 if bf16 else 1e-3), key
    assert found[4]["update_since_last/relative_norm_fp32"] < 0.8 * found[4]["update/relative_norm_fp32"]


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3", "zero3_bf16"])
def test_every_layout_exports_its_masters(strategy: str, runs: Path, tmp_path: Path) -> None:
    found = weights(runs / strategy, tmp_path / "masters")
    trained = load_file(runs / strategy / "model" / "model.safetensors")
    assert set(found) == set(trained)
    for name, tensor in trained.items():
        # model/ holds the weights that were trained with: under bf16 the masters, rounded.
        assert torch.equal(found[name].to(tensor.dtype), tensor), name
    bf16 = strategy.endswith("bf16")
    assert any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in found.values())
    assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16 if bf16 else torch.float32}


def test_another_run_is_refused_cold(runs: Path, tmp_path: Path) -> None:
    asked: dict[str, dict[str, Any]] = {
        "optimizer.lr": {"optimizer__lr": 1e-3},
        "optimizer.name": {"optimizer__name": "sgd"},
        "resume": {"student__config": tiny.llama(16)},
        "trainer.max_steps": {"trainer__max_steps": 1},
    }
    for key, changes in asked.items():
        with pytest.raises(UserError) as caught:
            run(settings("single", resume=saved(runs / "zero3"), **changes), tmp_path / "run")
        assert caught.value.key == key
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_manifest_says_which_rank_wrote_what(runs: Path) -> None:
    content = json.loads((Path(saved(runs / "zero3")) / checkpoint.MANIFEST).read_text())
    assert (content["strategy"], content["world_size"], content["masters"]) == ("zero3", 2, "float32")
    shards = {name: file["rank"] for name, file in content["files"].items() if name.endswith("_optim_states.pt")}
    assert sorted(shards.values()) == [0, 1]
    assert all(f"zero_pp_rank_{rank}_" in name for name, rank in shards.items())


def test_swapped_shards_end_every_rank_before_a_step(runs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(runs / "zero3", source)
    one, other = sorted((Path(saved(source)) / checkpoint.STATE / "checkpoint").glob("*_optim_states.pt"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    ranks = Ranks(tmp_path, train_all, [(settings("zero3", resume=saved(source)), tmp_path / "resumed")])
    assert 0 not in ranks.wait(120)
    said = ranks.said()
    assert "of rank 0 holds what rank 1 wrote as" in said or "of rank 1 holds what rank 0 wrote as" in said
    assert not (tmp_path / "resumed" / "metrics.jsonl").exists()


def test_killed_while_the_ranks_save_and_two_ranks_after_one(runs: Path, tmp_path: Path) -> None:
    often = {"every_n_steps": 1, "keep_last": 2}
    run_dir = tmp_path / "run"
    ranks = Ranks(tmp_path, train_all, [(settings("zero3", callbacks__checkpoint=often), run_dir)])
    root = run_dir / "checkpoints"
    deadline = time.monotonic() + 120
    while not ((root / "step-00000002").exists() and any(root.glob("*.partial/state.ckpt/checkpoint/*"))):
        assert not ranks.over(), ranks.said()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    ranks.kill()
    newest = checkpoint.latest(run_dir)
    assert newest is not None
    assert 2 <= checkpoint.verify(newest).step <= STEPS
    # In the same launch from two ranks to one and to two again: from step 2 alone, from step 4 together.
    again, alone = tmp_path / "again", runs / "zero3-single"
    launch([(settings("zero3", resume="auto"), run_dir), (settings("zero3", resume=saved(alone, 4)), again)], tmp_path)
    assert not list(root.glob("*.partial"))
    assert losses(run_dir) == losses(runs / "zero3")
    assert losses(again) == pytest.approx(losses(runs / "single")[4:], abs=1e-5)
