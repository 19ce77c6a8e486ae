"""What variance_reduction cannot be combined with, each in one line that says what to set instead."""

from __future__ import annotations

import pytest

from distill.commands import compose
from distill.config import checks
from distill.config.validate import ConfigError

RECIPE = ("recipe=kd_variance", "teacher.path=x")


def problems(*words: str) -> list[str]:
    try:
        compose.check("train", [*RECIPE, *words], own_check=checks.run)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["variance_reduction.unbiased=true", "variance_reduction.refresh_every_n_steps=144"],
        ["student.config={model_type: mlp, hidden_sizes: [32], activation: identity}", "optimizer=sgd_momentum"],
        ["trainer=ddp_cpu"],
        ["student=vit_tiny", "callbacks.update_mask.path=x"],
    ],
)
def test_what_goes_together(words: list[str]) -> None:
    assert problems(*words) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["variance_reduction.weight=1.5"], "`variance_reduction.weight` must be"),
        (["task=causal_lm", "data=arithmetic", "student=embedded"], "`task.name` must be 'image_classification' with"),
        (["task=causal_lm"], "`task.name` must be 'image_classification' with variance_reduction"),
        (["teacher=none", "teacher.path=null"], "`teacher.kind` must be 'frozen' with variance_reduction"),
        (["objective.label_weight=0.5"], "`objective.label_weight` must be 1 with variance_reduction"),
        (["optimizer=adamw"], "`optimizer.name` must be 'sgd' with variance_reduction"),
        (["trainer=zero2"], "`trainer.strategy` must be 'single' or 'ddp' with variance_reduction"),
        (["trainer.precision=bf16-mixed"], "`trainer.precision` must be '32-true' with variance_reduction"),
        (["teacher.dtype=float64"], "`teacher.dtype` must be 'float32' with variance_reduction"),
        (["callbacks.gradient_subspace.warmup_steps=2"], "`callbacks.gradient_subspace` must be null with variance"),
        (
            ["variance_reduction.unbiased=true", "data.flip=true"],
            "`data.flip` must be false with variance_reduction.un",
        ),
        (
            ["variance_reduction.unbiased=true", "data.pad_crop=1"],
            "`data.pad_crop` must be 0 with variance_reduction.u",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], says: str) -> None:
    assert any(says in problem for problem in problems(*words)), problems(*words)


def test_without_the_section_nothing_would_ask_the_teacher() -> None:
    found = problems("variance_reduction=null")
    assert any("`teacher.kind` must be 'none' when objective.logit_weight is 0" in problem for problem in found)
