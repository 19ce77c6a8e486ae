"""Image classification from configuration to exported student, through what every other task goes through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ResNetConfig

from distill.commands import eval as evaluation
from distill.commands import export
from distill.commands.train import run
from distill.config.schema import EvalConfig
from distill.data import image_files as files
from distill.errors import UserError
from tests import image_files, masks, tiny


def settings(recipe: str = "sft", **changes: Any) -> dict[str, Any]:
    return tiny.config(recipe, **tiny.PICTURED[recipe], **changes)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled student with batch statistics, checkpoints at steps 2, 4 and 6, and two micro-batches a step."""
    run_dir = tmp_path_factory.mktemp("images") / "run"
    changes = {"student__config": {**tiny.RESNET}, "trainer__micro_batch_size": 7}
    assert run(settings("offline_kd", callbacks__checkpoint__keep_last=5, **changes), run_dir) == 0
    return run_dir


def test_a_run_leaves_what_every_run_leaves(finished: Path) -> None:
    records = tiny.metrics(finished)
    assert [record["step"] for record in records] == list(range(7))
    assert {"eval/teacher_accuracy", "eval/teacher_ece", "eval/accuracy", "eval/agreement"} <= set(records[0])
    assert {"ce", "forward_kl", "loss", "teacher_nll", "grad_norm"} <= set(records[3])
    assert records[3]["positions"] == 12, "images of the whole step"
    assert {"sparsity/bf16/1e-5", "eval/ece", "eval/top5_accuracy"} <= set(records[-1])
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["prompt"].startswith("image ")
    card = (finished / "model" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "expected calibration error" in card
    assert "steps | 6 of 12 images" in card
    assert "resnet" in (finished / "report.html").read_text()


def test_the_loss_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """However it is cut into micro-batches; batch statistics would be those of each, so the student has none."""
    for name, rows in (("whole", None), ("cut", 5)):
        assert run(settings("offline_kd", trainer__micro_batch_size=rows), tmp_path / name) == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for key, tensor in whole.items():
        torch.testing.assert_close(cut[key], tensor, rtol=0, atol=1e-5, msg=lambda text, n=key: f"{n}: {text}")
    for ours, theirs in zip(tiny.metrics(tmp_path / "whole"), tiny.metrics(tmp_path / "cut"), strict=True):
        assert ours.get("loss", 0.0) == pytest.approx(theirs.get("loss", 0.0), rel=1e-5)


def test_a_resumed_run_is_bit_equal(finished: Path, tmp_path: Path) -> None:
    """Augmentations, batch statistics and their count included."""
    config = yaml.safe_load((finished / "config.yaml").read_text())
    resumed = config | {"resume": str(finished / "checkpoints" / "step-00000002")}
    assert run(resumed, tmp_path / "resumed") == 0
    expected, found = weights(finished), weights(tmp_path / "resumed")
    assert any("running_mean" in key for key in expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_a_checkpoint_is_exported_with_its_statistics(finished: Path, tmp_path: Path) -> None:
    folder = finished / "checkpoints" / "step-00000006"
    assert (
        export.run(
            {"network": "student", "checkpoint": str(folder), "out": str(tmp_path / "out"), "dtype": None}, tmp_path
        )
        == 0
    )
    found = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in weights(finished).items():
        assert torch.equal(found[key], tensor), key
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.num_labels == 10


def test_a_pretrained_backbone_gets_a_head_and_is_exported(tmp_path: Path) -> None:
    """Of two classes and a size of its own, from a configuration that says no size, as a ResNet of the hub."""
    size = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic", "num_channels": 1}
    AutoModelForImageClassification.from_config(ResNetConfig(**size)).save_pretrained(tmp_path / "hub")
    student = {"path": str(tmp_path / "hub"), "new_head": True}
    assert run(tiny.config("sft", **tiny.IMAGES | {"student": student}), tmp_path / "run") == 0
    assert (
        export.run(
            {"network": "student", "checkpoint": str(tmp_path / "run"), "out": str(tmp_path / "out"), "dtype": None},
            tmp_path,
        )
        == 0
    )
    found = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in weights(tmp_path / "run").items():
        assert torch.equal(found[key], tensor), key
    processors = [json.loads((tmp_path / at / "preprocessor_config.json").read_text()) for at in ("out", "run/model")]
    assert processors[0] == processors[1]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["9"] == "9"


def test_a_double_student_is_exported_as_it_is(tmp_path: Path) -> None:
    config = tiny.config("sft", **tiny.IMAGES | {"student": {"config": tiny.SOFTMAX, "dtype": "float64"}})
    assert run(config, tmp_path / "run") == 0
    assert (
        export.run(
            {"network": "student", "checkpoint": str(tmp_path / "run"), "out": str(tmp_path / "out"), "dtype": None},
            tmp_path,
        )
        == 0
    )
    found = load_file(tmp_path / "out" / "model.safetensors")
    for key, tensor in weights(tmp_path / "run").items():
        assert torch.equal(found[key], tensor), key


def test_an_evaluation_finds_what_the_run_found(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval.json"
    assert evaluation.run(EvalConfig(checkpoint=str(finished), out=str(out)).model_dump(by_alias=True), tmp_path) == 0
    found, last = json.loads(out.read_text()), tiny.metrics(finished)[-1]
    for key in ("eval/accuracy", "eval/ece", "eval/ce", "eval/reverse_kl", "eval/agreement"):
        assert found[key] == pytest.approx(last[key], rel=1e-6), key
    assert found["examples"] == 30
    assert len(found["samples"]) == 30


def test_a_folder_is_evaluated_when_its_task_is_named(finished: Path, tmp_path: Path) -> None:
    asked = {"checkpoint": str(finished / "model"), "task": {"name": "image_classification"}}
    config = EvalConfig(**asked, data={"source": "digits", "eval_size": 20})  # type: ignore[arg-type]
    assert evaluation.run(config.model_dump(by_alias=True), tmp_path) == 0
    other = EvalConfig(**asked, data={"source": "digits", "channels": 3})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"`data.channels` must be 1, which"):
        evaluation.run(other.model_dump(by_alias=True), tmp_path)


def test_a_trained_run_teaches_another_architecture(finished: Path, tmp_path: Path) -> None:
    teacher = {"kind": "frozen", "path": str(finished)}
    squared = {"objective__temperature": 4.0, "objective__scale_by_temperature_squared": True}
    changes = {"teacher": teacher, "student__config": tiny.MOBILENET, **squared}
    assert run(tiny.config("offline_kd", **{**tiny.IMAGES, **changes}), tmp_path / "run") == 0
    records = tiny.metrics(tmp_path / "run")
    accuracy = tiny.metrics(finished)[-1]["eval/accuracy"]
    assert records[0]["eval/teacher_accuracy"] == pytest.approx(accuracy)
    step = records[-1]
    assert step["loss"] == pytest.approx(0.5 * step["ce"] + 0.5 * 16 * step["forward_kl"], rel=1e-5)


def test_several_teachers_are_mixed(tmp_path: Path) -> None:
    members = {"one": {"config": tiny.RESNET, "weight": 2.0}, "two": {"config": tiny.CONVNEXT}}
    config = tiny.config("multi_teacher", **tiny.IMAGES, teacher={"kind": "multi", "members": members})
    assert run(config, tmp_path / "run") == 0
    assert tiny.metrics(tmp_path / "run")[-1]["forward_kl"] > 0


def test_images_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image_files.folder(tmp_path / "folder")
    walks, walk = list[str](), files.folder
    monkeypatch.setattr(files, "folder", lambda path, *rest: walks.append(path) or walk(path, *rest))
    data = {"source": "image_folder", "path": str(folder), "image_size": 8, "batch_size": 4, "eval_size": 2}
    changes = {**tiny.IMAGES, "data": data, "teacher": {"kind": "frozen", "config": tiny.VIT}}
    assert run(tiny.config("offline_kd", **changes), tmp_path / "run") == 0
    assert len(walks) == 1, "student, teacher and loader share one walk"
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["num_channels"], config["id2label"]) == (3, {"0": "blue", "1": "red"})


def test_a_teacher_of_other_classes_is_refused(finished: Path, tmp_path: Path) -> None:
    path = image_files.saved(tmp_path / "data")
    data = {"source": "image_dataset", "path": str(path), "image_column": "picture", "label_column": "kind"}
    data |= {"image_size": 8, "channels": 1, "batch_size": 4}
    changes = {**tiny.IMAGES, "data": data, "teacher": {"kind": "frozen", "path": str(finished)}}
    with pytest.raises(
        UserError, match=r"`teacher.path` must be a model of the data's classes \(it has 10, the data 2\)"
    ):
        run(tiny.config("offline_kd", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_running_statistics_are_no_weights(finished: Path, tmp_path: Path) -> None:
    last = tiny.metrics(finished)[-1]
    assert any(key.startswith("sparsity/") for key in last)
    assert not [key for key in last if "running" in key]
    assert "update/energy/group/other" not in last
    assert last["update/energy/group/convolution"] > 0.2
    mask = masks.write(tmp_path / "mask", settings(student__config={**tiny.RESNET}), 0.3)
    config = settings(student__config={**tiny.RESNET}, callbacks__update_mask={"path": str(mask)})
    assert run(config, tmp_path / "run") == 0
    start, end = (load_file(tmp_path / "run" / part / "model.safetensors") for part in ("source", "model"))
    followed = [name for name in start if "running_" in name]
    assert followed
    assert not any(torch.equal(start[name], end[name]) for name in followed)


def test_held_out_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    other = {"source": "image_folder", "path": str(image_files.folder(tmp_path / "folder")), "image_size": 8}
    with pytest.raises(UserError, match=r"`eval_data` must be images of the same classes"):
        run(settings("sft", eval_data=other | {"channels": 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_statistics_beside_bf16_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`trainer.precision` must be '32-true' or 'bf16-mixed' for a model that nor"):
        run(settings("sft", trainer__precision="bf16-true", student__config=tiny.RESNET), tmp_path / "run")
    options = {"trainer__precision": "bf16-mixed", "trainer__max_steps": 2}
    assert run(settings("sft", student__config=tiny.RESNET, **options), tmp_path / "mixed") == 0
    assert run(settings("sft", trainer__precision="bf16-true", trainer__max_steps=1), tmp_path / "other") == 0


def test_a_last_micro_batch_of_one_image_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`trainer.micro_batch_size` must be .*12 images of a step leave one alone"):
        run(settings("sft", trainer__micro_batch_size=11, student__config=tiny.RESNET), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_stages_on_images(tmp_path: Path) -> None:
    config = settings("offline_kd", stages={"much": {}, "little": {"data": {"limit": 24}}})
    assert run(config, tmp_path / "run") == 0
    assert (tmp_path / "run" / "model" / "preprocessor_config.json").is_file()
