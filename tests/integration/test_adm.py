"""Runs with feature terms: what they leave alone, what they reach, and how they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill import cli
from distill.commands.train import run
from distill.rollouts.dataset import DatasetRollout
from tests import tiny

OF_IMAGES = {**tiny.PICTURED["offline_kd"], "adm": {"teacher_layer": "resnet.encoder.stages.0"}}
OF_TEXTS: dict[str, Any] = {"adm": {}}


def trained(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    assert (
        run(tiny.config("offline_kd", **{"callbacks__checkpoint": None, "trainer__max_steps": 4, **changes}), folder)
        == 0
    )
    return load_file(folder / "model" / "model.safetensors")


CHANNELS = {**OF_IMAGES, "adm": OF_IMAGES["adm"] | {"description": "channels"}}
RELATED: dict[str, Any] = {"adm": {"description": "relations"}}


@pytest.mark.parametrize(
    "sections",
    [OF_TEXTS, OF_IMAGES, CHANNELS, RELATED],
    ids=["texts", "images", "channels of images", "relations of texts"],
)
def test_micro_batches_do_not_change_it_and_it_changes_the_student(sections: dict[str, Any], tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", **sections)
    parts = trained(tmp_path / "parts", **sections, trainer__micro_batch_size=5)
    without = trained(tmp_path / "without", **{**sections, "adm": None})
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-5)
    assert max(float((without[name] - value).abs().max()) for name, value in whole.items()) > 1e-3
    last = tiny.metrics(tmp_path / "whole")[-1]
    assert last["loss"] == pytest.approx((last["ce"] + last["forward_kl"]) / 2 + last["consensus"], rel=1e-5)
    first = tiny.metrics(tmp_path / "whole")[1]
    assert last["agreement"] > first["agreement"]


@pytest.mark.parametrize("method", ["dml", "kdcl", "switokd"])
def test_both_networks_learn_from_features(method: str, tmp_path: Path) -> None:
    both = {"adm": {"divergence": 0.5, "margin": -1.0}, "trainer__max_steps": 4, "callbacks__checkpoint": None}
    both["online__method"] = method

    def weights(name: str, **changes: Any) -> list[dict[str, torch.Tensor]]:
        assert run(tiny.config("online_kd", **both | changes), tmp_path / name) == 0
        folders = (tmp_path / name / "model", tmp_path / name / "online" / "teacher" / "model")
        return [load_file(folder / "model.safetensors") for folder in folders]

    whole, parts, without = (
        weights("whole"),
        weights("parts", trainer__micro_batch_size=5),
        weights("without", adm=None),
    )
    for ours, theirs, plain in zip(whole, parts, without, strict=True):
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-5)
        assert max(float((plain[name] - value).abs().max()) for name, value in ours.items()) > 1e-4
    last = tiny.metrics(tmp_path / "whole")[-1]
    assert last["divergence"] > 0
    assert last["loss"] == pytest.approx(last["ce"] + last["forward_kl"] + last["consensus"], rel=1e-5)
    if method == "switokd":
        # Where it pauses, its own loss counts nothing.
        return
    teacher = {key: last[f"online/teacher/{key}"] for key in ("loss", "ce", "forward_kl")}
    assert teacher["loss"] == pytest.approx(teacher["ce"] + teacher["forward_kl"] + 0.5 * last["divergence"], rel=1e-5)


ADAPTED = {"adm": {"student_layer": "model.layers.0"}, "student__lora": {"r": 2}}
TAKEN: dict[str, dict[str, Any]] = {
    "images in bf16": OF_IMAGES | {"trainer__precision": "bf16-mixed"},
    "a teacher told the answer": OF_TEXTS | {"teacher__prompt": "{answer} {prompt}"},
    "an adapter": ADAPTED,
    "recomputed activations": {"adm": {"student_layer": "model.layers.0.mlp.down_proj"}},
}
ALIKE = {
    "images in bf16": {"trainer__precision": "32-true"},
    "recomputed activations": {"student__gradient_checkpointing": True},
}
"""What changes nothing beyond rounding."""


@pytest.mark.parametrize("name", TAKEN)
def test_what_it_is_combined_with(name: str, tmp_path: Path) -> None:
    once: dict[str, Any] = {**TAKEN[name], "trainer__max_steps": 2, "callbacks__sparsity": None}
    trained(tmp_path / "one", **once)
    if name in ALIKE:
        trained(tmp_path / "other", **once | ALIKE[name])
        # From the same weights: after a step of Adam, rounding may have turned what is nearly 0.
        ours, theirs = (tiny.metrics(tmp_path / part)[1] for part in ("one", "other"))
        for key in ("consensus", "agreement", "loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=0.02), key
    last = tiny.metrics(tmp_path / "one")[-1]
    assert last["loss"] == pytest.approx((last["ce"] + last["forward_kl"]) / 2 + last["consensus"], rel=1e-5)


@pytest.mark.parametrize("recipe", ["offline_kd", "online_kd"])
def test_resumed_is_uninterrupted_bit_by_bit(recipe: str, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "offline_kd": {**OF_IMAGES, "callbacks__feature_maps": {"every_n_steps": 3, "images": 1}},
        "online_kd": {"adm": {"divergence": 0.5, "margin": -1.0}},
    }[recipe]
    saving = {"callbacks__checkpoint": {"every_n_steps": 2, "keep_last": 9}, "callbacks__sparsity": None}
    config = tiny.config(recipe, **sections, **saving, trainer__max_steps=4, trainer__micro_batch_size=5)
    assert run(config, tmp_path / "whole") == 0
    assert run(config | {"resume": str(tmp_path / "whole/checkpoints/step-00000002")}, tmp_path / "resumed") == 0
    for part in ("model", "online/teacher/model") if recipe == "online_kd" else ("model",):
        ours, theirs = (load_file(tmp_path / f"{name}/{part}/model.safetensors") for name in ("resumed", "whole"))
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    if recipe == "offline_kd":
        assert [path.name for path in sorted((tmp_path / "resumed/feature_maps").iterdir())] == [
            "step-00000003.png",
            "step-00000004.png",
        ]


class Told:
    """Rows of the data, with states that their teacher is said to have."""

    on_policy = False

    def __init__(self, student: Any, **_: Any) -> None:
        self.rows = DatasetRollout()

    def __call__(self, samples: Any, copies: Any, step: int) -> Any:
        return [replace(row, teacher_states=torch.zeros(row.positions, 16)) for row in self.rows(samples, copies, step)]


def test_states_that_a_rollout_has_left_do_not_stand_in_for_features(tmp_path: Path) -> None:
    custom = {"kind": "custom", "custom": {"_target_": f"{__name__}.Told"}}
    told = trained(tmp_path / "told", adm={}, rollout=custom, trainer__max_steps=2)
    plain = trained(tmp_path / "plain", adm={}, trainer__max_steps=2)
    assert all(torch.equal(told[name], value) for name, value in plain.items())


def test_a_weight_of_zero_is_no_term_at_all(tmp_path: Path) -> None:
    off = trained(tmp_path / "off", adm={"consensus": 0.0})
    without = trained(tmp_path / "without")
    assert all(torch.equal(off[name], value) for name, value in without.items())


def test_features_alone(tmp_path: Path) -> None:
    """Without a logit term the teacher is asked all the same."""
    trained(tmp_path, adm={}, objective__label_weight=1.0, objective__logit_weight=0.0)
    last = tiny.metrics(tmp_path)[-1]
    assert "forward_kl" not in last
    assert last["loss"] == pytest.approx(last["ce"] + last["consensus"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["recipe=sft", "adm.consensus=1"],
            "`teacher.kind` must be 'frozen' or 'cotrained' with adm: a model whose features can be read",
        ),
        (
            ["recipe=offline_kd", "teacher=cached", "teacher.cache=x", "adm.consensus=1"],
            "`teacher.kind` must be 'frozen'",
        ),
        (["recipe=offline_kd", "adm.consensus=0"], "`adm.consensus` must be above 0 unless adm.divergence is"),
        (["recipe=offline_kd", "adm.student_layer=model.layers"], "a module that runs in a forward pass"),
        (["recipe=offline_kd", "adm.divergence=1"], "`adm.divergence` must be 0 unless teacher.kind is 'cotrained'"),
        (
            ["recipe=online_adm", "teacher.path=null", "teacher.members={a: {path: x}, b: {path: x}}"],
            "`teacher.members` must be one network at most with adm",
        ),
        (["recipe=speculative_kd", "adm.consensus=1"], "`rollout.kind` must be another with adm"),
        (
            ["recipe=offline_kd", "adm.description=classes"],
            "`adm.description` must be 'relations' or 'channels' unless task.name is",
        ),
        (["recipe=offline_kd", "adm.temperature=0"], "`adm.temperature` must be"),
        (["recipe=offline_kd", "adm.student_layer=lm_hed"], "(did you mean 'lm_head'?)"),
    ],
)
def test_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(message in line for line in lines), lines
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "before anything was trained or measured"


def test_maps_are_drawn_and_change_nothing(tmp_path: Path, pictures: None) -> None:
    drawn = trained(tmp_path / "drawn", **OF_IMAGES, callbacks__feature_maps={"every_n_steps": 3, "images": 2})
    files = sorted(path.name for path in (tmp_path / "drawn" / "feature_maps").iterdir())
    assert files == [f"step-{step:08d}.png" for step in (0, 3, 4)]
    assert all(torch.equal(value, drawn[name]) for name, value in trained(tmp_path / "plain", **OF_IMAGES).items())


def test_maps_are_drawn_of_images_with_masks(tmp_path: Path) -> None:
    layers = {"student_layer": "segformer.stages.0", "teacher_layer": "segformer.stages.1"}
    changes = {"adm": layers, "callbacks__feature_maps": {"every_n_steps": 9, "images": 1}, "trainer__max_steps": 1}
    trained(tmp_path, **tiny.MASKS, **changes)
    assert sorted(path.name for path in (tmp_path / "feature_maps").iterdir()) == [
        "step-00000000.png",
        "step-00000001.png",
    ]
    last = tiny.metrics(tmp_path)[-1]
    assert last["loss"] == pytest.approx((last["ce"] + last["forward_kl"]) / 2 + last["consensus"], rel=1e-5)
