"""What a run leaves behind, for every recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.commands.train import run
from distill.errors import UserError
from tests import tiny


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_run_directory(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny.config(recipe, callbacks__evaluation__every_n_steps=4), tmp_path) == 0
    records = tiny.metrics(tmp_path)
    assert [record["step"] for record in records] == list(range(7))
    assert all({"step", "time"} <= set(record) for record in records)
    assert [record["step"] for record in records if "eval/accuracy" in record] == [0, 4, 6]
    assert [record["step"] for record in records if "sparsity/bf16/1e-5" in record] == [3, 6]
    teachers = [record["step"] for record in records if "eval/teacher_accuracy" in record]
    once = {"sft": [], "multi_teacher": [], "online_kd": [0, 4, 6]}
    assert teachers == once.get(recipe, [0]), "of a single teacher"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["run_name"] == recipe
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    steps = {json.loads(line)["step"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()}
    assert steps == {0, 4, 6}
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "latest",
        "step-00000004",
        "step-00000006",
    ]
    assert "<html" in (tmp_path / "report.html").read_text()
    assert str(tmp_path / "report.html") in capsys.readouterr().out


def test_the_report_of_a_run_has_its_pictures(pictures: None, tmp_path: Path) -> None:
    assert run(tiny.config(), tmp_path) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<path") > page.count("<svg") >= 5


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_student_is_a_hugging_face_folder_with_a_card(recipe: str, tmp_path: Path) -> None:
    assert run(tiny.config(recipe), tmp_path) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model(**tokenizer("1+2=", return_tensors="pt")).logits.isfinite().all()
    before = load_file(tmp_path / "source" / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert any(not torch.equal(after[name], before[name]) for name in after)
    card = (tmp_path / "model" / "README.md").read_text()
    assert recipe in card
    assert "arithmetic" in card
    assert "accuracy" in card


def test_teacher_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill import training

    kept = []
    real = training.build_models
    monkeypatch.setattr(training, "build_models", lambda config: kept.append(real(config)) or kept[-1])
    assert run(tiny.config("opd"), tmp_path) == 0
    teacher = kept[0][1].lm.model
    fresh = real(tiny.config("opd"))[1].lm.model.state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in teacher.state_dict().items())
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())


def test_student_learns_from_its_teacher(tmp_path: Path) -> None:
    assert run(tiny.config("opd", trainer__max_steps=40, callbacks__sparsity=None), tmp_path) == 0
    losses = [record["loss"] for record in tiny.metrics(tmp_path) if "loss" in record]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_accumulation_does_not_change_the_run(tmp_path: Path) -> None:
    for recipe in tiny.RECIPES:
        whole, parts = tmp_path / recipe / "whole", tmp_path / recipe / "parts"
        options = {"optimizer__name": "sgd", "optimizer__lr": 0.3}
        assert run(tiny.config(recipe, **options), whole) == 0
        assert run(tiny.config(recipe, trainer__micro_batch_size=5, **options), parts) == 0
        one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parts))
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-6)


def test_mixed_rollouts_follow_the_fraction(tmp_path: Path) -> None:
    config = tiny.config("opd", rollout__on_policy_fraction=0.5, rollout__samples_per_prompt=1, trainer__max_steps=12)
    assert run(config, tmp_path) == 0
    shares = [record["on_policy"] for record in tiny.metrics(tmp_path) if "loss" in record]
    assert set(shares) == {0.0, 1.0}


def test_resume_with_another_batch_size_goes_on_with_the_next_prompt(tmp_path: Path) -> None:
    assert run(tiny.config("sft"), tmp_path) == 0
    resumed = tiny.config("sft", resume="auto", trainer__max_steps=8, data__batch_size=6)
    assert run(resumed, tmp_path) == 0
    state = torch.load(tmp_path / "checkpoints" / "step-00000008" / "state.ckpt", weights_only=True)
    loaders = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loaders[0]["consumed"] == 6 * 12 + 2 * 6


def test_nan_in_the_students_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    assert run(tiny.config("sft"), tmp_path / "first") == 0
    folder = tmp_path / "first" / "model"
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = tiny.config("sft", student__path=str(folder), student__config=None)
    with pytest.raises(UserError, match="norm"):
        run(config, tmp_path / "second")


def test_divergence_ends_the_run_in_one_line(tmp_path: Path) -> None:
    from distill.errors import RunError

    config = tiny.config("sft", optimizer__name="sgd", optimizer__lr=1e30, trainer__gradient_clip_val=None)
    with pytest.raises(RunError, match="step"):
        run(config, tmp_path)


def test_lora_student_is_merged_on_export(tmp_path: Path) -> None:
    assert run(tiny.config("opd", student__lora={"r": 2, "alpha": 4.0}), tmp_path) == 0
    before = load_file(tmp_path / "source" / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert set(after) == set(before)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert all("_proj" in name for name in moved)
    record = tiny.metrics(tmp_path)[-1]
    assert record["sparsity/group/attention"] < 1.0
    assert record["sparsity/group/norm"] == 1.0
