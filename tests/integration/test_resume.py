"""Interrupted and resumed equals uninterrupted: weights bit by bit, metrics without a gap or a double."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill import checkpoint
from distill.callbacks.interrupt import OUT_OF_TIME
from distill.commands.train import run
from distill.errors import RunError, UserError
from tests import tiny
from tests.processes import Process

TIMES = ("time", "tokens_per_second")


def start(config: dict[str, Any], run_dir: Path) -> Process:
    return Process(run_dir.parent, train, config, run_dir, log=f"{run_dir.name}.log")


def train(config: dict[str, Any], run_dir: Path) -> int:
    torch.set_num_threads(1)
    return run(config, run_dir)


def wait_for_step(run_dir: Path, step: int, process: Process) -> None:
    file = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and any(f'"step": {step},' in line for line in file.read_text().splitlines())):
        assert process.poll() is None, process.said()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def assert_same_run(resumed: Path, straight: Path) -> None:
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (resumed, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    records = [
        [{k: v for k, v in r.items() if k not in TIMES and not k.startswith("time/")} for r in tiny.metrics(folder)]
        for folder in (resumed, straight)
    ]
    assert records[0] == records[1]
    samples = [(folder / "samples.jsonl").read_text() for folder in (resumed, straight)]
    assert samples[0] == samples[1]


def long(**changes: Any) -> dict[str, Any]:
    options = {"trainer__max_steps": 30, "callbacks__checkpoint__every_n_steps": 3}
    options["callbacks__evaluation__every_n_steps"] = 4
    return tiny.config("opd", student__config={**tiny.llama(8), "attention_dropout": 0.1}, **options, **changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("straight")
    torch.set_num_threads(1)
    assert run(long(), run_dir) == 0
    return run_dir


@pytest.mark.parametrize("step", [1, 8, 20])
def test_killed_and_resumed_equals_uninterrupted(step: int, straight: Path, tmp_path: Path) -> None:
    process = start(long(), tmp_path)
    wait_for_step(tmp_path, step, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model").exists()
    assert run(long(resume="auto"), tmp_path) == 0
    assert_same_run(tmp_path, straight)


def test_killed_while_saving(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        real = checkpoint.publish
        patch.setattr(checkpoint, "publish", lambda staged, saved: real(staged, saved) if saved.step < 6 else die())
        with pytest.raises(Killed):
            run(long(), tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000006.partial").exists()
    assert run(long(resume="auto"), tmp_path) == 0
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    assert_same_run(tmp_path, straight)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signal_saves_and_tells_by_exit_status(number: int, status: int, straight: Path, tmp_path: Path) -> None:
    process = start(long(), tmp_path)
    wait_for_step(tmp_path, 4, process)
    process.send_signal(number)
    assert process.wait() == status, process.said()
    stopped = tiny.metrics(tmp_path)[-1]["step"]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.verify(newest).step == stopped < 30
    assert run(long(resume="auto"), tmp_path) == 0
    assert_same_run(tmp_path, straight)


def test_out_of_time_saves_and_tells_by_exit_status(straight: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        process = start(long(trainer__max_time=1e-3, resume="auto"), tmp_path)
        assert process.wait() == OUT_OF_TIME, process.said()
        assert "saving and stopping" in process.said()
        newest = checkpoint.latest(tmp_path)
        assert newest is not None
        assert checkpoint.verify(newest).step == step
    assert run(long(resume="auto"), tmp_path) == 0
    assert_same_run(tmp_path, straight)


def test_resuming_an_earlier_checkpoint_drops_the_later_ones(straight: Path, tmp_path: Path) -> None:
    assert run(long(callbacks__checkpoint__keep_last=20), tmp_path) == 0
    assert run(long(resume=str(tmp_path / "checkpoints" / "step-00000009")), tmp_path) == 0
    assert_same_run(tmp_path, straight)


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "manifest"])
def test_damaged_checkpoint_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    assert run(tiny.config("sft"), tmp_path) == 0
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    state = newest / checkpoint.STATE
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-10])
    elif damage == "altered":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "missing":
        state.unlink()
    else:
        (newest / checkpoint.MANIFEST).write_text("{")
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=checkpoint.MANIFEST if damage == "manifest" else checkpoint.STATE):
        run(tiny.config("sft", resume="auto"), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_checkpoint_holds_no_teacher_and_only_plain_values(tmp_path: Path) -> None:
    assert run(tiny.config("opd"), tmp_path) == 0
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    state = torch.load(newest / checkpoint.STATE, weights_only=True)
    assert state["state_dict"]
    assert all(name.startswith("student.") for name in state["state_dict"])
    widths = {tensor.shape[-1] for tensor in state["state_dict"].values()}
    assert widths <= {8, 16}
    moments = sum(len(group["params"]) for group in state["optimizer_states"][0]["param_groups"])
    assert moments == len(set(state["state_dict"])) - ("student.lm_head.weight" in state["state_dict"])


def test_fresh_run_does_not_overwrite_another(tmp_path: Path) -> None:
    assert run(tiny.config("sft"), tmp_path) == 0
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="resume=auto"):
        run(tiny.config("sft"), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning as L

    real = L.Trainer.save_checkpoint

    def full(trainer: L.Trainer, path: Path, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step > 2:
            raise OSError(28, "No space left on device", str(path))
        real(trainer, path, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", full)
    with pytest.raises(RunError, match="No space left"):
        run(tiny.config("sft"), tmp_path)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.verify(newest).step == 2
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_resuming_a_finished_run_changes_nothing(straight: Path, tmp_path: Path) -> None:
    assert run(long(), tmp_path) == 0
    assert run(long(resume="auto"), tmp_path) == 0
    assert_same_run(tmp_path, straight)


def test_finished_run_without_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    assert run(tiny.config("sft", callbacks__checkpoint=None), tmp_path) == 0
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="finished"):
        run(tiny.config("sft", resume="auto"), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_source_of_an_attempt_that_never_began_is_replaced(tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run(tiny.config("sft", seed=1), other) == 0
    (tmp_path / "run").mkdir()
    (other / "source").rename(tmp_path / "run" / "source")
    assert run(tiny.config("sft", seed=2, trainer__max_steps=1), tmp_path / "run") == 0
    assert run(tiny.config("sft", seed=2, trainer__max_steps=1), tmp_path / "fresh") == 0
    found, expected = (load_file(tmp_path / name / "source" / "model.safetensors") for name in ("run", "fresh"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_changed_keys_are_told_on_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(tiny.config("sft"), tmp_path) == 0
    assert run(tiny.config("sft", resume="auto", trainer__max_steps=7, data__batch_size=6), tmp_path) == 0
    told = [record.getMessage() for record in caplog.records if "another" in record.getMessage()]
    assert [message.split("`")[1] for message in told] == ["data.batch_size", "trainer.max_steps"]


@pytest.mark.parametrize("change", [{"lr": 5e-3}, {"weight_decay": 0.1}, {"betas": (0.9, 0.95)}])
def test_optimizer_settings_that_a_resumed_run_would_ignore_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    assert run(tiny.config("sft"), tmp_path) == 0
    before = (tmp_path / "metrics.jsonl").read_text()
    [(key, value)] = change.items()
    with pytest.raises(UserError, match=f"optimizer.{key}"):
        run(tiny.config("sft", resume="auto", trainer__max_steps=7, **{f"optimizer__{key}": value}), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments(straight: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(12):
        process = start(long(resume="auto"), tmp_path)
        # Past the imports: from opening the run directory to the export of the student.
        time.sleep(moments.uniform(4.0, 9.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(long(resume="auto"), tmp_path) == 0
    assert_same_run(tmp_path, straight)
