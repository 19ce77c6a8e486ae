"""The training step: normalisation, silent micro-batches, modes, and nothing that waits for the device."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill import mutual, training
from distill.module import DistillModule
from distill.objective import Objective
from distill.teachers.cotrained import CotrainedTeacher
from distill.types import Batch, Row, collate
from tests import tiny


def build(recipe: str, accumulate: int = 1, world: int = 1, **changes: Any) -> DistillModule:
    config = tiny.config(recipe, **changes)
    lm, teacher = training.build_models(config)
    together = mutual.build(config, teacher.networks) if isinstance(teacher, CotrainedTeacher) else None
    options = Objective(**config["objective"]), config["optimizer"]
    module = DistillModule(lm, teacher, *options, 6, seed=0, mutual=together)
    strategy = SimpleNamespace(handles_gradient_accumulation=False)
    trainer = SimpleNamespace(accumulate_grad_batches=accumulate, world_size=world, global_step=0, strategy=strategy)
    object.__setattr__(module, "_trainer", trainer)
    return module


def batch(lengths: tuple[int, ...] = (2, 4), window: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, 13, (3 + length,), generator=generator)
        rows.append(Row(number, ids, torch.arange(3 + length) >= 3))
    return collate(rows, 0, sum(lengths) if window is None else window, on_policy=False)


def gradients(module: DistillModule) -> dict[str, torch.Tensor | None]:
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_lightning_and_ddp_divide_by_what_the_step_multiplies_with(recipe: str) -> None:
    plain = build(recipe).training_step(batch(), 0).item()
    assert build(recipe, 3, 2).training_step(batch(), 0).item() == pytest.approx(6 * plain)
    assert build(recipe).training_step(batch(window=12), 0).item() == pytest.approx(plain / 2)


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_a_micro_batch_without_targets_gives_every_parameter_a_zero_gradient(recipe: str) -> None:
    module, silent = build(recipe), batch(window=6)
    loss = module.training_step(replace(silent, target_mask=torch.zeros_like(silent.target_mask)), 0)
    assert loss.item() == 0.0
    loss.backward()
    # DDP waits for a gradient of each of them.
    for name, gradient in gradients(module).items():
        assert gradient is not None, name
        assert not gradient.any(), name


def test_a_window_without_targets_is_zero_too() -> None:
    module, silent = build("opd"), batch(window=0)
    loss = module.training_step(replace(silent, target_mask=torch.zeros_like(silent.target_mask)), 0)
    assert loss.item() == 0.0
    assert module.drain_metrics()["loss"] == 0.0


class Waits(TorchDispatchMode):
    """Counts what copies a number from the device to Python, for which a GPU has to finish first."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_no_number_is_read_back_per_micro_batch(recipe: str) -> None:
    # transformers itself looks at the mask, to see whether sdpa can do without one.
    members = [f"teacher__members__{name}" for name in tiny.RECIPES[recipe]["teacher"].get("members", {})]
    asked = {"frozen": ["teacher"], "cotrained": ["teacher"], "multi": members}.get(
        tiny.RECIPES[recipe]["teacher"]["kind"], []
    )
    module = build(recipe, **{f"{model}__attn_implementation": "eager" for model in ("student", *asked)})
    with Waits() as waits:
        module.training_step(batch(), 0).backward()
        module.training_step(batch(), 1).backward()
    assert waits.count == 0
    with Waits() as waits:
        float(torch.ones(()))
    assert waits.count == 1


def test_metrics_are_means_over_the_window_of_all_micro_batches() -> None:
    parts, whole = build("sft"), build("sft")
    both = batch((2, 4))
    whole.training_step(both, 0)
    for number in range(2):
        length = int(both.attention_mask[number].sum())
        part = {name: getattr(both, name)[number : number + 1, :length] for name in ("input_ids", "attention_mask")}
        mask = both.target_mask[number : number + 1, :length]
        parts.training_step(replace(both, **part, target_mask=mask, sample_ids=both.sample_ids[:1]), number)
    expected, found = whole.drain_metrics(), parts.drain_metrics()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["positions"] == 6
    assert parts.drain_metrics() == {}


def test_the_learning_rate_recorded_is_the_one_the_step_takes() -> None:
    module = build("sft", optimizer__schedule="linear", optimizer__warmup_steps=2)
    configured = module.configure_optimizers()
    optimizer = configured["optimizer"]
    assert configured["lr_scheduler"]["interval"] == "step"
    optimizer.param_groups[0]["lr"] = 0.25
    module.training_step(batch(), 0).backward()
    module.configure_gradient_clipping(optimizer, gradient_clip_val=1.0)
    metrics = module.drain_metrics()
    assert metrics["lr"] == 0.25
    assert metrics["grad_norm"] > 0


def test_without_a_limit_the_gradient_is_measured_and_left_alone() -> None:
    module = build("sft")
    module.training_step(batch(), 0).backward()
    before = {name: gradient.clone() for name, gradient in gradients(module).items() if gradient is not None}
    module.configure_gradient_clipping(module.configure_optimizers()["optimizer"], gradient_clip_val=None)
    norm = torch.stack([gradient.norm() for gradient in before.values()]).norm()
    assert module.drain_metrics()["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert all(torch.equal(gradient, gradients(module)[name]) for name, gradient in before.items())


def test_a_student_that_was_loaded_in_evaluation_mode_trains_and_the_teacher_does_not() -> None:
    module = build("opd")
    module.student.eval()
    module.on_fit_start()
    assert module.teacher is not None
    assert all(part.training for part in module.student.modules())
    assert not any(part.training for part in module.teacher.lm.model.modules())


def test_the_teacher_is_neither_in_the_state_nor_optimised() -> None:
    module = build("opd")
    assert module.teacher is not None
    optimised = {id(p) for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]}
    assert optimised == {id(p) for p in module.student.parameters()}
    assert all(name.startswith("student.") for name in module.state_dict())


def test_bf16_weights_keep_their_fp32_buffers() -> None:
    """Rotary frequencies in bf16 put late positions elsewhere, and the exported model has them in fp32 again."""
    lm, _ = training.build_models(tiny.config("sft", trainer__precision="bf16-true"))
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.bfloat16}
    buffers = {name: buffer.dtype for name, buffer in lm.model.named_buffers() if "inv_freq" in name}
    assert buffers
    assert set(buffers.values()) == {torch.float32}
