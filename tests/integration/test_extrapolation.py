"""Extrapolation in whole runs of one process: resuming, subnetworks, other precisions, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill import checkpoint
from distill.callbacks import extrapolation
from distill.callbacks.extrapolation import Extrapolation
from distill.commands.train import run
from distill.errors import RunError, UserError
from tests import masks, tiny
from tests.integration.test_resume import assert_same_run, start, wait_for_step

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(10, 40) for b in range(10, 20)]
"""Without answers: the score is the distance to the teacher, which candidates do change."""


def settings(folder: Path, recipe: str = "opd", **changes: Any) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    if not path.exists():
        path.write_text("\n".join(map(json.dumps, ROWS)))
    common = {
        "data": {"source": "text", "path": str(path), "batch_size": 12, "eval_size": 8},
        "optimizer__lr": 1e-3,
        "callbacks__extrapolation": {"examples": 8, "candidates": 3},
        "callbacks__sparsity": None,
        "callbacks__evaluation": None,
        "callbacks__checkpoint": {"every_n_steps": 3, "keep_last": 2},
    }
    return tiny.config(recipe, **common | changes)


def accepted(run_dir: Path) -> list[float]:
    key = "extrapolation/accepted"
    return [record[key] for record in tiny.metrics(run_dir) if key in record]


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    long = settings(tmp_path, trainer__max_steps=24)
    straight, killed, elsewhere = (tmp_path / name for name in ("straight", "killed", "elsewhere"))
    assert run(long, straight) == 0
    assert max(accepted(straight)[3:]) > 0, "so that a resumed run has something to get wrong"
    # What checkpoints of before step 16 needed went with them.
    assert [path.name for path in (straight / "extrapolation").iterdir()] == ["step-00000016"]
    process = start(long, killed)
    wait_for_step(killed, 7, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = checkpoint.latest(killed)
    assert newest is not None
    shutil.copytree(killed, tmp_path / "copy")
    assert run(long | {"resume": "auto"}, killed) == 0
    (killed / "samples.jsonl").touch()
    (straight / "samples.jsonl").touch()
    assert_same_run(killed, straight)
    assert run(long | {"resume": str(tmp_path / "copy")}, elsewhere) == 0
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (elsewhere, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, with checkpoints at 3 and 6."""
    folder = tmp_path_factory.mktemp("short")
    assert run(settings(folder), folder / "run") == 0
    return folder


def test_a_resumed_run_needs_what_the_checkpoint_extrapolates_from(short: Path, tmp_path: Path) -> None:
    shutil.copytree(short / "run", tmp_path / "run")
    resumed = settings(tmp_path, resume=str(tmp_path / "run" / "checkpoints" / "step-00000003"))
    [weights] = (tmp_path / "run" / "extrapolation" / "step-00000002").glob("*.bin")
    content = bytearray(weights.read_bytes())
    content[10] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"`callbacks.extrapolation` must be null, or resume .*rank-0.bin is damaged"):
        run(resumed, tmp_path / "again")
    # Without extrapolation it is not needed.
    assert run(resumed | {"callbacks": {**resumed["callbacks"], "extrapolation": None}}, tmp_path / "without") == 0


def test_a_run_that_was_begun_without_is_not_resumed_with_it(tmp_path: Path) -> None:
    assert run(settings(tmp_path, callbacks__extrapolation=None, trainer__max_steps=3), tmp_path / "run") == 0
    with pytest.raises(UserError, match="null, as in the run that is resumed"):
        run(settings(tmp_path, resume=str(tmp_path / "run")), tmp_path / "again")


SUBNETWORKS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"trainer__precision": "bf16-true", "optimizer__lr": 3e-3},
}


@pytest.mark.parametrize("case", SUBNETWORKS)
def test_outside_of_a_mask_nothing_is_extrapolated(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 the optimizer has masters of what the mask selects; they move along, and the next step keeps it."""
    seen: dict[int, list[Any]] = {}
    original = Extrapolation.on_step

    def on_step(self: Extrapolation, trainer: Any, pl_module: Any, step: int) -> None:
        original(self, trainer, pl_module, step)
        weights = [part.parameter.detach().reshape(-1).clone() for part in self._masters.parts]
        seen[step] = list(zip(self._masters.read(), weights, strict=True))

    monkeypatch.setattr(Extrapolation, "on_step", on_step)
    config = settings(tmp_path, **SUBNETWORKS[case], optimizer__weight_decay=0.1, trainer__max_steps=5)
    config["callbacks"]["update_mask"] = {"path": str(masks.write(tmp_path / "mask", config, 0.3))}
    assert run(config, tmp_path / "run") == 0
    assert max(accepted(tmp_path / "run")) > 0
    masks.check(tmp_path / "mask", tmp_path / "run" / "source", tmp_path / "run" / "model")
    assert tiny.metrics(tmp_path / "run")[-1]["mask/violations"] == 0
    for now, later in zip(seen[4], seen[5], strict=True):
        assert now[0].dtype == torch.float32
        assert all(torch.equal(master.to(weight.dtype), weight) for master, weight in (now, later))
        assert (later[0] - now[0]).abs().max() < 2 * config["optimizer"]["lr"], "one step of Adam, no jump"


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_other_precisions(precision: str, tmp_path: Path) -> None:
    assert run(settings(tmp_path, trainer__precision=precision, trainer__max_steps=4), tmp_path / "run") == 0
    records = [record for record in tiny.metrics(tmp_path / "run") if "extrapolation/tried" in record]
    assert [record["step"] for record in records] == [1, 2, 4]
    for record in records:
        better = record["extrapolation/score_after"] > record["extrapolation/score_before"]
        assert better == (record["extrapolation/accepted"] > 0)


def test_a_verifier_is_what_judges_where_there_is_one(tmp_path: Path) -> None:
    """Of training rows, without the teacher: accuracies of 8 examples."""
    config = tiny.config("sft", trainer__max_steps=1, callbacks__extrapolation={"examples": 8})
    assert run(config, tmp_path / "run") == 0
    [record] = [record for record in tiny.metrics(tmp_path / "run") if "extrapolation/tried" in record]
    assert 8 * record["extrapolation/score_after"] in range(9)


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    for changes, text in (
        ({"callbacks__extrapolation": {"examples": 999}}, r"examples` must be at most 292"),
        ({"recipe": "sft"}, "null without answers in the training data, and without a teacher"),
        ({"teacher": {"kind": "self"}}, "null without answers in the training data, and without a teacher"),
    ):
        with pytest.raises(UserError, match=text):
            run(settings(tmp_path, **changes), tmp_path / "run")


def test_a_full_disk_ends_the_run_and_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "extrapolation").touch()
    with pytest.raises(RunError, match=r"`callbacks.extrapolation=null` needs no space for it"):
        run(settings(tmp_path, trainer__max_steps=1), tmp_path / "run")


@pytest.mark.parametrize("recipe", ["opd", "sft"])
def test_a_candidate_that_breaks_the_student_is_rolled_back(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged by the distance to the teacher, and by a verifier."""
    options: dict[str, Any] = {"trainer__max_steps": 2, "callbacks__extrapolation": {"examples": 8}}
    config = settings(tmp_path, **options) if recipe == "opd" else tiny.config("sft", **options)
    assert run(config | {"callbacks": {**config["callbacks"], "extrapolation": None}}, tmp_path / "without") == 0
    monkeypatch.setattr(extrapolation, "candidate", lambda base, now, k: now * math.inf if k else now)
    assert run(config, tmp_path / "run") == 0
    found = [record for record in tiny.metrics(tmp_path / "run") if "extrapolation/tried" in record]
    assert [(record["extrapolation/accepted"], record["extrapolation/tried"]) for record in found] == [(0, 1), (0, 1)]
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "without"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_that_have_diverged_are_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.instruments.score", lambda *_, **__: math.nan)
    with pytest.raises(RunError, match=r"`callbacks.extrapolation`: the student's logits, or its teacher's, are NaN"):
        run(settings(tmp_path), tmp_path / "run")
