"""What online distillation cannot be combined with, each in one line that says what to set instead."""

from __future__ import annotations

import pytest

from distill.commands import compose
from distill.config import checks
from distill.config.validate import ConfigError

MEMBERS = "teacher.members={a: {path: x}, b: {path: y}}"


def problems(*words: str) -> list[str]:
    try:
        compose.check("train", ["recipe=online_kd", *words], own_check=checks.run)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["online.method=switokd", "online.lr=1e-3", "online.export=true"],
        ["online.method=kdcl", "online.ensemble=naive", "teacher.path=null", MEMBERS],
        ["trainer=zero3", "trainer.precision=bf16-mixed"],
        ["task=image_classification", "student=resnet_tiny", "data=digits", "teacher.path=x"],
        ["callbacks.geometry.every_n_steps=9", "student.lora.r=4"],
        ["online.label_weight=0"],
        ["task=semantic_segmentation", "teacher.path=x", "adm.consensus=1", "callbacks.feature_maps.images=2"],
        ["teacher.lora.r=4", "adm.divergence=0.1"],
        ["teacher.lora.target_modules=[q_proj]", "online.method=switokd", "callbacks.collapse=null"],
        ["online.method=kdcl", "teacher.path=null", "teacher.members={a: {path: x, lora: {}}, b: {path: y}}"],
    ],
)
def test_what_goes_together(words: list[str]) -> None:
    assert problems(*words) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["teacher=frozen"], "`teacher.kind` must be 'cotrained' with the section `online` (choose"),
        (["teacher=cached"], "`teacher.kind` must be 'cotrained' with the section `online`"),
        (["online=null"], "`online` must be given with teacher.kind 'cotrained'"),
        (["online.method=okd"], "`online.method` must be one of 'dml', 'kdcl' or 'switokd'"),
        (
            ["online.frozen_batch_norm=true"],
            "`online.frozen_batch_norm` must be null unless task.name is 'image",
        ),
        (["online.lr=0"], "`online.lr` must be"),
        (
            ["online.label_weight=0", "online.logit_weight=0"],
            "`online.label_weight` must be above 0 when online.logit_weight is 0, with teacher.kind 'cotrained'",
        ),
        (["objective.label_weight=0", "online.logit_weight=0"], "`online.label_weight` must be above 0 when"),
        (
            ["adm.consensus=1", "callbacks.feature_maps.images=2"],
            "`callbacks.feature_maps` must be null without adm and task.name 'image_classification' or 'semantic",
        ),
        (["teacher.path=null"], "`teacher.path` must be a folder"),
        (["online.method=switokd", "teacher.path=null", MEMBERS], "`teacher.members` must be empty with online.method"),
        (["teacher.path=null", "teacher.members={a: {path: x}}"], "`teacher.members` must be two members or more"),
        (["teacher.path=null", "teacher.members={a/b: {path: x}, c: {path: y}}"], "`teacher.members` must be names of"),
        (["teacher.path=null", "teacher.members={student: {path: x}, c: {path: y}}"], "none of them 'student'"),
        (
            ["teacher.path=null", "teacher.members={a: {path: x, weight: 2}, b: {path: y}}"],
            "`teacher.members.a.weight` must be 1: every network counts alike with teacher.kind 'cotrained'",
        ),
        (["online.ensemble=naive"], "`online.ensemble` must be 'mean' unless online.method is 'kdcl'"),
        (["rollout=on_policy"], "`rollout.kind` must be 'dataset' (all networks learn the data's own targets) with"),
        (["rollout=speculative"], "`rollout.kind` must be"),
        (["objective=reverse_kl"], "`objective.divergence` must be 'forward_kl' (KL of what others say"),
        (["teacher.prompt='{answer}'"], "`teacher.prompt` must be null with teacher.kind 'cotrained'"),
        (["trainer=zero3", "teacher.placement=sharded"], "`teacher.placement` must be 'replicated' with"),
        (["callbacks=effopd"], "`callbacks.extrapolation` must be null (it knows the student alone) with"),
        (["callbacks.update_mask.path=x"], "`callbacks.update_mask` must be null"),
        (["callbacks.gradient_variance.blocks=2"], "`callbacks.gradient_variance` must be null"),
        (["callbacks.gradient_subspace.warmup_steps=2"], "`callbacks.gradient_subspace` must be null"),
        (["callbacks.optimizer_state.every_n_steps=2"], "`callbacks.optimizer_state` must be null"),
        (
            ["task=image_classification", "variance_reduction.weight=0.5"],
            "`variance_reduction` must be null with teacher.kind 'cotrained'",
        ),
        (
            ["recipe=offline_kd", "teacher.lora.r=4"],
            "`teacher.lora` must be null unless teacher.kind is 'cotrained': an adapter that does not learn",
        ),
        (
            ["recipe=multi_teacher", "teacher.members={a: {path: x, lora: {}}, b: {path: y}}"],
            "`teacher.members.a.lora` must be null unless teacher.kind is 'cotrained'",
        ),
        (
            ["teacher.path=null", MEMBERS, "teacher.lora.r=4"],
            "`teacher.lora` must be null with teacher.members",
        ),
        (
            ["task=image_classification", "student=vit_tiny", "data=digits", "teacher.path=x", "teacher.lora.r=4"],
            "`task.name` must be 'causal_lm' with teacher.lora, which is of language models",
        ),
        (["teacher.lora.rank=4"], "`teacher.lora.rank`"),
        (["callbacks.collapse.max_ce_rise=0"], "`callbacks.collapse.max_ce_rise` must be"),
        (
            ["stages={first: {}, second: {data: {limit: 9}}}"],
            "`teacher.kind` must be another kind in a run of stages, which hands over the student alone",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], says: str) -> None:
    assert any(says in problem for problem in problems(*words)), problems(*words)
