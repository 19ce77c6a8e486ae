"""Semantic segmentation from configuration to exported student, through what every other task goes through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from distill.commands import eval as evaluation
from distill.commands import export
from distill.commands.train import run
from distill.config.schema import EvalConfig
from distill.errors import UserError
from tests import image_files, tiny

ROOT = Path(__file__).parents[2]


def settings(recipe: str = "offline_kd", **changes: Any) -> dict[str, Any]:
    sections = {key: value for key, value in tiny.MASKS.items() if recipe != "sft" or key != "teacher"}
    return tiny.config(recipe, **sections, **changes)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled student that goes by batch statistics, checkpoints at steps 2, 4 and 6, two micro-batches a step."""
    run_dir = tmp_path_factory.mktemp("masks") / "run"
    changes = {"student__frozen_batch_norm": False, "trainer__micro_batch_size": 7}
    assert run(settings(callbacks__checkpoint__keep_last=5, **changes), run_dir) == 0
    return run_dir


def test_a_run_leaves_what_every_run_leaves(finished: Path) -> None:
    records = tiny.metrics(finished)
    assert [record["step"] for record in records] == list(range(7))
    assert {"eval/teacher_miou", "eval/teacher_accuracy", "eval/miou", "eval/agreement"} <= set(records[0])
    assert {"ce", "forward_kl", "loss", "teacher_nll", "grad_norm"} <= set(records[3])
    assert all(6 * 256 < record["positions"] < 12 * 256 for record in records[1:]), "pixels that have a class"
    assert len({record["positions"] for record in records[1:]}) > 3
    assert {"sparsity/bf16/1e-5", "sparsity/group/convolution", "sparsity/group/attention"} <= set(records[-1])
    assert "sparsity/group/other" not in records[-1]
    card = (finished / "model" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "mean over classes of intersection over union" in card
    report = (finished / "report.html").read_text()
    assert "Mean intersection over union" in report
    assert report.count('<img class="masks" src="data:image/png;base64,') == 8, "of the first and the last evaluation"


def test_the_loss_is_that_of_all_pixels_of_the_step(tmp_path: Path) -> None:
    """However it is cut into micro-batches, whose masks have different numbers of pixels with a class."""
    for name, rows in (("whole", None), ("cut", 5)):
        assert run(settings(trainer__micro_batch_size=rows, optimizer__eps=1e-4), tmp_path / name) == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for key, tensor in whole.items():
        torch.testing.assert_close(cut[key], tensor, rtol=0, atol=1e-5, msg=lambda text, n=key: f"{n}: {text}")
    for ours, theirs in zip(tiny.metrics(tmp_path / "whole"), tiny.metrics(tmp_path / "cut"), strict=True):
        assert ours.get("loss", 0.0) == pytest.approx(theirs.get("loss", 0.0), rel=1e-5)


def test_a_killed_run_goes_on_bit_equal(finished: Path, tmp_path: Path) -> None:
    """Killed behind a checkpoint: scenes, augmentations and batch statistics are those of the run nobody killed."""
    config = yaml.safe_load((finished / "config.yaml").read_text())
    run_dir = tmp_path / "run"
    code = "import json, sys; from distill.commands.train import run; from pathlib import Path; "
    code += "run(json.loads(sys.argv[1]), Path(sys.argv[2]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(config), str(run_dir)], env=environment)
    first = run_dir / "checkpoints" / "step-00000002"
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists()
    assert run(config | {"resume": str(first)}, tmp_path / "resumed") == 0
    expected, found = weights(finished), weights(tmp_path / "resumed")
    assert any("running_mean" in key for key in expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_a_checkpoint_is_exported_for_transformers(finished: Path, tmp_path: Path) -> None:
    folder = finished / "checkpoints" / "step-00000006"
    asked = {"checkpoint": str(folder), "network": "student", "out": str(tmp_path / "out"), "dtype": None}
    assert export.run(asked, tmp_path) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in weights(finished).items():
        assert torch.equal(found[key], tensor), key
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.id2label[1] == "disc"
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").crop_size["height"] == 16


def test_an_evaluation_finds_what_the_run_found(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval.json"
    assert evaluation.run(EvalConfig(checkpoint=str(finished), out=str(out)).model_dump(by_alias=True), tmp_path) == 0
    found, last = json.loads(out.read_text()), tiny.metrics(finished)[-1]
    for key in ("eval/accuracy", "eval/miou", "eval/ece", "eval/ce", "eval/reverse_kl", "eval/agreement"):
        assert found[key] == pytest.approx(last[key], rel=1e-6), key
    assert found["examples"] == 7
    assert json.loads(capsys.readouterr().out)["eval/miou"] == found["eval/miou"]


def test_a_trained_run_teaches_a_fresh_student(finished: Path, tmp_path: Path) -> None:
    teacher = {"kind": "frozen", "path": str(finished)}
    squared = {"objective__temperature": 4.0, "objective__scale_by_temperature_squared": True}
    changes: dict[str, Any] = {**tiny.MASKS, "teacher": teacher, "trainer__max_steps": 1, **squared}
    assert run(tiny.config("offline_kd", **changes), tmp_path / "run") == 0
    records = tiny.metrics(tmp_path / "run")
    assert records[0]["eval/teacher_miou"] == pytest.approx(tiny.metrics(finished)[-1]["eval/miou"])
    step = records[-1]
    assert step["loss"] == pytest.approx(0.5 * step["ce"] + 0.5 * 16 * step["forward_kl"], rel=1e-5)


def test_a_teacher_of_other_classes_is_refused(finished: Path, tmp_path: Path) -> None:
    data = {"source": "mask_folder", "path": str(image_files.pairs(tmp_path / "pairs")), "classes": 3}
    data |= {"image_size": 16, "batch_size": 2}
    changes = {**tiny.MASKS, "data": data, "teacher": {"kind": "frozen", "path": str(finished)}}
    with pytest.raises(UserError, match=r"`teacher.path` must be a model of the data's classes \(it has 6, the data 3"):
        run(tiny.config("offline_kd", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_and_masks_of_ones_own(tmp_path: Path) -> None:
    """Held out is one pair, and training goes on from the folder's names; two stages on top."""
    data = {"source": "mask_folder", "path": str(image_files.pairs(tmp_path / "pairs")), "image_size": 16}
    data |= {"classes": ["ground", "left", "right"], "batch_size": 4}
    config = tiny.config("sft", **{**tiny.MASKS, "data": data, "teacher": {"kind": "none"}, "trainer__max_steps": 1})
    assert run(config | {"stages": {"one": {}, "two": {"data": {"limit": 4}}}}, tmp_path / "run") == 0
    found = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert found["id2label"] == {"0": "ground", "1": "left", "2": "right"}


def test_steps_without_a_target_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Masks of which no pixel has a class teach nothing, which nobody would see from a loss of 0."""
    folder = image_files.pairs(tmp_path / "pairs")
    for path in (folder / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            Image.new("L", mask.size, 255).save(path)
    data = {"source": "mask_folder", "path": str(folder), "image_size": 16, "batch_size": 4, "classes": ["a", "b"]}
    changes = {**tiny.MASKS, "data": data, "teacher": {"kind": "none"}, "trainer__max_steps": 2}
    assert run(tiny.config("sft", **changes, callbacks__evaluation=None), tmp_path / "run") == 0
    assert [record.message for record in caplog.records if "had no target" in record.message] == [
        "step 1 had no target to learn from, and there may be more such steps"
    ]
