"""Training a subnetwork in one process: recipes, optimizers, precisions, resuming, refusals, and a broken promise."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import masked_optim
from distill.callbacks.update_mask import UpdateMask
from distill.cli import main
from distill.commands.train import run
from distill.errors import RunError, UserError
from distill.masked_optim import MaskedOptimizer
from tests import masks, tiny
from tests.integration.test_resume import assert_same_run, start, wait_for_step

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "opd": ("opd", {}),
    "offline_kd, accumulated and clipped": (
        "offline_kd",
        {"trainer__micro_batch_size": 5, "trainer__gradient_clip_val": 0.02},
    ),
    "sft, sgd": ("sft", {"optimizer__name": "sgd", "optimizer__momentum": 0.9, "optimizer__lr": 0.5}),
    "sft, bf16": ("sft", {"trainer__precision": "bf16-true"}),
    "sft, autocast": ("sft", {"trainer__precision": "bf16-mixed"}),
}
DECAY = {"optimizer__weight_decay": 0.1}


def settings(recipe: str, mask: Path, **changes: Any) -> dict[str, Any]:
    return tiny.config(recipe, callbacks__update_mask={"path": str(mask)}, **DECAY | changes)


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return masks.write(tmp_path_factory.mktemp("mask") / "mask.safetensors", tiny.config("sft"), 0.2)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_no_bit_outside_the_mask_changes(case: str, mask: Path, tmp_path: Path) -> None:
    recipe, changes = CASES[case]
    assert run(settings(recipe, mask, **changes), tmp_path) == 0
    masks.check(mask, tmp_path / "source", tmp_path / "model")
    first, *_, last = tiny.metrics(tmp_path)
    assert last["mask/violations"] == 0
    assert first["mask/density"] == pytest.approx(0.2, abs=0.05)
    assert min(first["mask/state_bytes"], first["mask/dense_state_bytes"]) > 0


WATCHED = {"callbacks__optimizer_state": {"every_n_steps": 1}}
CLIPPED = {"trainer__gradient_clip_val": 0.02, "trainer__micro_batch_size": 5}


@pytest.mark.parametrize("changes", [WATCHED, CLIPPED])
def test_either_form_of_the_state_ends_at_the_same_bits(
    changes: dict[str, Any], mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run of one form goes on in the other from a checkpoint, as if it had always been so."""
    assert run(settings("sft", mask, **changes), tmp_path / "compact") == 0
    monkeypatch.setattr("distill.optim.COMPACT_BELOW", 0.0)
    resume = str(tmp_path / "compact" / "checkpoints" / "step-00000004")
    assert run(settings("sft", mask, **changes), tmp_path / "whole") == 0
    assert run(settings("sft", mask, resume=resume, **changes), tmp_path / "resumed") == 0
    monkeypatch.undo()
    resume = str(tmp_path / "whole" / "checkpoints" / "step-00000004")
    assert run(settings("sft", mask, resume=resume, **changes), tmp_path / "back") == 0
    for name, tensor in weights(tmp_path / "compact").items():
        for other in ("whole", "resumed", "back"):
            assert torch.equal(tensor, weights(tmp_path / other)[name]), (other, name)
    for ours, theirs in zip(*(tiny.metrics(tmp_path / name) for name in ("compact", "whole")), strict=True):
        seen = {key for key in ours if key.startswith("optimizer/")}
        assert bool(seen) == ("callbacks__optimizer_state" in changes and ours["step"] > 1)
        assert all(ours[key] == pytest.approx(theirs[key]) for key in seen)


def test_a_mask_of_everything_trains_as_without_one(tmp_path: Path) -> None:
    full = tmp_path / "mask.safetensors"
    config = tiny.config("sft", **DECAY)
    masks.write(full, config, 1.0, empty=None)
    assert run(settings("sft", full, trainer__gradient_clip_val=None), tmp_path / "masked") == 0
    assert run(tiny.config("sft", trainer__gradient_clip_val=None, **DECAY), tmp_path / "free") == 0
    for name, tensor in weights(tmp_path / "free").items():
        assert torch.equal(tensor, weights(tmp_path / "masked")[name]), name


def test_killed_and_resumed_equals_uninterrupted(mask: Path, tmp_path: Path) -> None:
    """With weights in bf16, whose masters are in the optimizer's state."""
    options = {"trainer__precision": "bf16-true", "trainer__max_steps": 14}
    assert run(settings("opd", mask, **options), tmp_path / "straight") == 0
    process = start(settings("opd", mask, **options), tmp_path / "killed")
    wait_for_step(tmp_path / "killed", 5, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(settings("opd", mask, resume="auto", **options), tmp_path / "killed") == 0
    assert_same_run(tmp_path / "killed", tmp_path / "straight")
    masks.check(mask, tmp_path / "killed" / "source", tmp_path / "killed" / "model")


def test_a_run_goes_on_with_its_own_mask_only(mask: Path, tmp_path: Path) -> None:
    other = masks.write(tmp_path / "other.safetensors", tiny.config("sft"), 0.2, seed=1)
    assert run(settings("sft", mask), tmp_path / "masked") == 0
    assert run(tiny.config("sft", **DECAY), tmp_path / "free") == 0
    for source, config in (
        ("masked", settings("sft", other)),
        ("masked", tiny.config("sft", **DECAY)),
        ("free", settings("sft", mask)),
    ):
        resume = str(tmp_path / source / "checkpoints" / "step-00000004")
        with pytest.raises(UserError) as caught:
            run(config | {"resume": resume}, tmp_path / "again")
        assert caught.value.key == "callbacks.update_mask"
        assert not (tmp_path / "again").exists()


def test_a_broken_promise_ends_the_run_and_saves_nothing(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one frozen coordinate: -0.0 in place of 0.0 would do."""
    step = MaskedOptimizer.step
    steps = 0

    def slip(self: MaskedOptimizer, *arguments: Any, **named: Any) -> Any:
        nonlocal steps
        result = step(self, *arguments, **named)
        steps += 1
        if steps == 3:
            parameter = self.param_groups[0]["params"][0]
            flat = parameter.detach().reshape(-1)
            place = int((~self.selected(parameter)).nonzero()[0])
            flat.view(torch.int32)[place] ^= 1
        return result

    monkeypatch.setattr(MaskedOptimizer, "step", slip)
    with pytest.raises(RunError, match=r"`model\.embed_tokens\.weight`: 1 coordinates outside the mask"):
        run(settings("sft", mask), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-????????")] == ["step-00000002"]
    assert not (tmp_path / "model").exists()


class SlipAndStop(L.Callback):
    """After everybody has measured step 2: flips a bit of a tensor that is frozen as a whole, and ends the run."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        if trainer.global_step == 2:
            frozen = list(pl_module.student.parameters())[1]
            frozen.detach().reshape(-1)[:1].view(torch.int32).bitwise_xor_(1)
            trainer.should_stop = True


def test_nothing_is_exported_unchecked_whoever_ends_the_run(mask: Path, tmp_path: Path) -> None:
    config = settings("sft", mask, callbacks__checkpoint=None)
    config["callbacks"]["extra"] = {"slip": {"_target_": f"{__name__}.SlipAndStop"}}
    with pytest.raises(RunError, match=r"1 coordinates outside the mask .* at step 2"):
        run(config, tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_run_resumed_at_its_end_is_checked_before_it_is_exported(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(settings("sft", mask), tmp_path) == 0
    monkeypatch.setattr(UpdateMask, "verify", broken)
    with pytest.raises(RunError, match="step 6"):
        run(settings("sft", mask, resume="auto"), tmp_path)


def broken(_: UpdateMask, step: int) -> None:
    raise RunError(f"step {step}")


def test_without_masked_gradients_and_steps_the_check_fails(mask: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The promise is not kept by chance: a dense optimizer's decay and momentum break it at once."""
    monkeypatch.setattr(masked_optim, "Compact", Everything)
    monkeypatch.setattr(masked_optim, "Whole", Everything)
    with pytest.raises(RunError, match="coordinates outside the mask"):
        run(settings("sft", mask), tmp_path)


class Everything(masked_optim.Whole):
    """Knows its mask, but steps all coordinates."""

    def windows(self, values: torch.Tensor, master: torch.Tensor | None) -> Any:
        yield slice(0, self.numel), values


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["train", *words, "callbacks.evaluation=null", "callbacks.sparsity=null"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_refusals_are_one_line(mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_student = f"student.config={json.dumps(tiny.llama(8))}".replace('"', ""), f"student.tokenizer={tiny.TOKENIZER}"
    student = ("recipe=[sft,subnetwork]", "student=llama_tiny", *tiny_student, "data.batch_size=12")
    key = "callbacks.update_mask.path"
    empty = masks.write(tmp_path / "empty.safetensors", tiny.config("sft"), 0.0, empty=None)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    run_dir = f"hydra.run.dir={tmp_path / 'run'}"
    for path, words in (
        (None, "`callbacks.update_mask.path` must be a mask file"),
        (tmp_path / "nowhere", "must be an existing mask file"),
        (foreign, "must be a mask file made by `distill mask`"),
        (empty, "must be a mask that selects a coordinate to train"),
    ):
        line = refusal(capsys, *student, f"{key}={'null' if path is None else path}", run_dir)
        assert line.startswith(f"error: `{key}` must be"), line
        assert words in line
    for changes, words in (
        (("seed=1",), "a mask made for these weights"),
        (("student.config.hidden_size=16",), "mis-shaped"),
        (("student.config.num_hidden_layers=1",), "missing"),
        (("student.lora.r=2",), "`student.lora` must be null with callbacks.update_mask"),
    ):
        assert words in refusal(capsys, *student, f"{key}={mask}", run_dir, *changes)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
