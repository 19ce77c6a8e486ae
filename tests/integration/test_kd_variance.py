"""recipe=kd_variance through the whole loop, in float64, against the formula written out and against distillation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from distill.commands.train import run
from distill.data import images
from distill.data.sampler import indices
from distill.errors import UserError
from distill.maskfile import MaskFile
from tests import masks, tiny

STEPS, BATCH, RATE, L2, WEIGHT = 6, 12, 0.5, 1e-2, 0.6
Weights = dict[str, Tensor]


def settings(taught_by: str | Path | None, config: dict[str, Any] = tiny.SOFTMAX, **changes: Any) -> dict[str, Any]:
    """Plain SGD without a teacher, else the recipe."""
    data = {"source": "digits", "batch_size": BATCH, "eval_size": 30, "mean": [0.0], "std": [1.0]}
    values: dict[str, Any] = {
        "task": {"name": "image_classification"},
        "data": data,
        "student": {"config": config, "dtype": "float64"},
        "optimizer": {"name": "sgd", "lr": RATE, "weight_decay": L2},
        "trainer__gradient_clip_val": None,
        "trainer__max_steps": STEPS,
        "callbacks__sparsity": None,
    }
    if taught_by is not None:
        values["teacher"] = {"kind": "frozen", "path": str(taught_by), "dtype": "float64"}
        values["variance_reduction"] = {"weight": WEIGHT}
    return tiny.config("sft", **values | changes)


def trained(config: dict[str, Any], run_dir: Path) -> Weights:
    assert run(config, run_dir) == 0
    return load_file(run_dir / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another seed, after 20 steps."""
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    trained(settings(None, seed=3, trainer__max_steps=20), run_dir)
    return run_dir / "model"


def written_out(start: Weights, teacher: Weights, every: int | None, unbiased: bool) -> Weights:
    """The method on softmax regression, from the data alone."""
    train, _ = images.build({**settings(None)["data"]})
    pixels = torch.stack([train[number].pixels for number in range(len(train))]).flatten(1).double()
    labels = torch.tensor([train[number].label for number in range(len(train))])
    names = ("classifier.weight", "classifier.bias")

    def of(weights: Weights, rows: list[int]) -> Weights:
        leaves = {name: weights[name].clone().requires_grad_() for name in names}
        logits = pixels[rows] @ leaves[names[0]].T + leaves[names[1]]
        loss = functional.cross_entropy(logits, labels[rows]) + L2 / 2 * leaves[names[0]].square().sum()
        return dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    x, theta = ({name: weights[name].clone() for name in names} for weights in (start, teacher))
    full = of(theta, list(range(len(train))))
    for step in range(STEPS):
        if every is not None and step > 0 and step % every == 0:
            theta = {name: value.clone() for name, value in x.items()}
            full = of(theta, list(range(len(train))))
        rows = indices(len(train), 0, step * BATCH, BATCH)
        ours, theirs = of(x, rows), of(theta, rows)
        for name in names:
            taken = theirs[name] - (full[name] if unbiased else 0)
            x[name] = x[name] - RATE * (ours[name] - WEIGHT * taken)
    return x


@pytest.mark.parametrize(("unbiased", "every"), [(False, None), (True, None), (False, 2), (True, 4)])
@pytest.mark.parametrize("rows", [None, 5])
def test_a_run_is_the_formula(
    unbiased: bool, every: int | None, rows: int | None, teacher: Path, tmp_path: Path
) -> None:
    """However it is cut into micro-batches."""
    section = {"weight": WEIGHT, "unbiased": unbiased, "refresh_every_n_steps": every}
    changes = {"variance_reduction": section, "trainer__micro_batch_size": rows, "callbacks__checkpoint": None}
    found = trained(settings(teacher, **changes), tmp_path / "run")
    start = load_file(tmp_path / "run" / "source" / "model.safetensors")
    expected = written_out(start, load_file(teacher / "model.safetensors"), every, unbiased)
    for name, value in expected.items():
        assert float((value - start[name]).abs().max()) > 0.01
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(("temperature", "equal"), [(1.0, True), (2.0, False)])
def test_it_is_distillation_at_temperature_1(temperature: float, equal: bool, teacher: Path, tmp_path: Path) -> None:
    """To (1 - λ)·CE + λ·KL of recipe=offline_kd, without the ℓ2 term that KD knows nothing of."""
    plain = {"optimizer__weight_decay": 0.0, "callbacks__checkpoint": None}
    found = trained(settings(teacher, **plain), tmp_path / "reduced")
    mixed = {"label_weight": 1 - WEIGHT, "logit_weight": WEIGHT, "divergence": "forward_kl", "temperature": temperature}
    mixed["scale_by_temperature_squared"] = True
    other = settings(teacher, objective=mixed, variance_reduction=None, **plain)
    expected = trained(other, tmp_path / "distilled")
    gap = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert gap < 1e-12 if equal else gap > 1e-3


@pytest.mark.parametrize("config", [{"hidden_sizes": [9], "activation": "identity"}, {"hidden_sizes": [9, 8]}])
def test_deep_linear_and_relu_networks_learn(config: dict[str, Any], tmp_path: Path) -> None:
    own = {"model_type": "mlp", **config}
    plain = {"optimizer__lr": 0.05, "callbacks__checkpoint": None}
    trained(settings(None, own, **plain, seed=1), tmp_path / "teacher")
    section = {"weight": 0.5, "unbiased": True, "refresh_every_n_steps": 10}
    changes = {"variance_reduction": section, "trainer__max_steps": 60, "optimizer__lr": 0.2}
    trained(settings(tmp_path / "teacher", own, **plain | changes), tmp_path / "run")
    losses = [record["ce"] for record in tiny.metrics(tmp_path / "run") if "ce" in record]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_svrg_of_the_students_own_start(tmp_path: Path) -> None:
    """λ = 1, unbiased, θ = x: the first step is one of full-batch gradient descent."""
    start = {"kind": "frozen", "config": tiny.SOFTMAX, "dtype": "float64"}
    section = {"weight": 1.0, "unbiased": True, "refresh_every_n_steps": 1}
    changes = {"variance_reduction": section, "trainer__max_steps": 1, "callbacks__checkpoint": None}
    small = trained(settings("", teacher=start, **changes), tmp_path / "small")
    whole = settings(None, trainer__max_steps=1, callbacks__checkpoint=None, data__batch_size=1438)
    descent = trained(whole, tmp_path / "whole")
    for name, value in descent.items():
        torch.testing.assert_close(small[name], value, rtol=0, atol=1e-12)


def test_a_resumed_run_is_bit_equal(teacher: Path, tmp_path: Path) -> None:
    """θ and its gradient are state: the checkpoint at 4 is between two refreshes."""
    section = {"weight": 1.0, "unbiased": True, "refresh_every_n_steps": 3}
    config = settings(teacher, variance_reduction=section, callbacks__checkpoint={"every_n_steps": 4})
    expected = trained(config, tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    found = trained(written | {"resume": str(checkpoint)}, tmp_path / "resumed")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    plain = settings(teacher, callbacks__checkpoint={"every_n_steps": 4})
    trained(plain, tmp_path / "plain")
    asked = settings(
        teacher, variance_reduction=section, resume=str(tmp_path / "plain" / "checkpoints" / "step-00000004")
    )
    with pytest.raises(UserError, match=r"`variance_reduction.refresh_every_n_steps` must be null"):
        run(asked, tmp_path / "asked")


def test_a_pruned_student_takes_its_own_coordinates_of_the_teachers_gradient(teacher: Path, tmp_path: Path) -> None:
    """x⁺ = x - γ·M(∇f_ξ(x) - λ·∇f_ξ(θ)) from x = Mθ: the coordinates that are pruned stay at 0."""
    pruned = tmp_path / "pruned"
    shutil.copytree(teacher, pruned)
    once = {"student": {"path": str(pruned), "dtype": "float64"}, "callbacks__checkpoint": None}
    config = settings(teacher, **once)
    path = masks.write(tmp_path / "mask.safetensors", config, density=0.3, empty=None)
    kept = {name: MaskFile(path, "mask").mask(name) for name in load_file(teacher / "model.safetensors")}
    start = {name: value * kept[name] for name, value in load_file(teacher / "model.safetensors").items()}
    save_file(start, pruned / "model.safetensors", metadata={"format": "pt"})
    path.unlink()
    path = masks.write(tmp_path / "mask.safetensors", config, density=0.3, empty=None)
    subnetwork = {"path": str(path)}
    found = trained(settings(teacher, callbacks__update_mask=subnetwork, **once), tmp_path / "run")
    for name, value in found.items():
        assert not value[~kept[name]].any()
        assert (value != start[name])[kept[name]].any()
    one = once | {"trainer__max_steps": 1}
    dense = trained(settings(teacher, **one), tmp_path / "dense")
    masked = trained(settings(teacher, callbacks__update_mask=subnetwork, **one), tmp_path / "masked")
    for name, value in dense.items():
        # The optimizer of a mask steps in fp32.
        torch.testing.assert_close(masked[name], value * kept[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "scale", "says"),
    [
        (
            {"model_type": "mlp", "hidden_sizes": [4]},
            0.0,
            "`teacher.path` must be a model of the student's architecture",
        ),
        (tiny.SOFTMAX, 0.5, "`teacher.path` must be a model that scales pixels as the student does"),
    ],
)
def test_another_teacher_is_refused(
    config: dict[str, Any], scale: float, says: str, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        run(settings(teacher, config, data__mean=[scale]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_statistics_are_refused(tmp_path: Path) -> None:
    own = {"kind": "frozen", "config": tiny.RESNET}
    with pytest.raises(UserError, match=r"`student.config` must be a model without batch statistics"):
        run(settings("", student={"config": tiny.RESNET}, teacher=own), tmp_path / "run")
