from pathlib import Path
from typing import Any

import pytest

from distill.config import checks
from distill.config.schema import EvalConfig, TrainConfig
from distill.config.validate import ConfigError, validate

GOOD: dict[str, Any] = {
    "student": {"path": "s"},
    "teacher": {"kind": "frozen", "path": "t"},
    "rollout": {"kind": "on_policy"},
}
SFT: dict[str, Any] = {"student": {"path": "s"}, "objective": {"label_weight": 1, "logit_weight": 0}}

SHARDED = {"teacher__placement": "sharded", "trainer": {"strategy": "zero2"}}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        result[section] = {**result.get(section, {}), name: value} if name else value
    return result


def errors(base: dict[str, Any], **changes: Any) -> dict[str, str]:
    """Key → message of every mistake; ``a__b`` in a keyword stands for ``a.b``."""
    raw = merged(base, {key.replace("__", "."): value for key, value in changes.items()})
    try:
        validate(raw, TrainConfig, checks.train)
    except ConfigError as error:
        return {problem.key: str(problem) for problem in error.problems}
    return {}


@pytest.mark.parametrize("base", [GOOD, SFT])
def test_sensible_configurations_pass(base: dict[str, Any]) -> None:
    assert errors(base) == {}


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, 2.0])
def test_jsd_at_its_ends_names_the_kls(beta: float) -> None:
    found = errors(GOOD, objective={"divergence": "jsd", "beta": beta})
    assert list(found) == ["objective.beta"]
    assert "'forward_kl'" in found["objective.beta"]
    assert "'reverse_kl'" in found["objective.beta"]
    assert f"but is {beta}" in found["objective.beta"]


def test_beta_matters_to_jsd_only() -> None:
    assert errors(GOOD, objective__beta=0.0) == {}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"objective": {"divergence": "skew_forward_kl", "alpha": 1.0}}, "objective.alpha"),
        ({"objective": {"divergence": "skew_reverse_kl", "alpha": -0.1}}, "objective.alpha"),
        ({"objective": {"ratio_clip": 2.0}}, "objective.ratio_clip"),
        ({"data": {"limit": 10, "fraction": 0.5}}, "data.limit"),
        ({"data": {"limit": 0}}, "data.limit"),
        ({"rollout": {"kind": "on_policy", "draft_length": 3}}, "rollout.draft_length"),
        ({"rollout": {"kind": "on_policy", "teacher_top_p": 0.9}}, "rollout.teacher_top_p"),
        ({"rollout": {"kind": "speculative", "accept_top_k": 0}}, "rollout.accept_top_k"),
        ({"rollout": {"kind": "speculative"}, **SHARDED}, "teacher.placement"),
        ({**SFT, "rollout": {"kind": "speculative"}, "teacher": {"kind": "none"}}, "teacher.kind"),
        ({"rollout": {"kind": "speculative"}, "objective": {"divergence": "sampled_token"}}, "rollout.kind"),
        ({"data": {"fraction": 0.0}}, "data.fraction"),
        ({"data": {"fraction": 1.5}}, "data.fraction"),
        ({"objective": {"logit_weight": 0.0}}, "objective.logit_weight"),
        ({"objective": {"logit_weight": 0.0, "label_weight": 1.0}, "rollout": {}}, "teacher.kind"),
        ({"teacher": {"kind": "none"}}, "objective.logit_weight"),
        ({"objective": {"label_weight": 0.5}}, "objective.label_weight"),
        ({"objective": {"divergence": "sampled_token"}, "rollout": {}}, "rollout.kind"),
        (
            {"objective": {"divergence": "sampled_token"}, "rollout__on_policy_fraction": 0.5},
            "rollout.on_policy_fraction",
        ),
        ({"objective": {"divergence": "sampled_token"}, "rollout__temperature": 0}, "rollout.temperature"),
        ({"rollout": {"samples_per_prompt": 2}}, "rollout.samples_per_prompt"),
        ({"rollout": {"on_policy_fraction": 0.5}}, "rollout.on_policy_fraction"),
        ({"rollout__samples_per_prompt": 2, "rollout__temperature": 0}, "rollout.temperature"),
        ({"rollout__samples_per_prompt": 3}, "data.batch_size"),
        ({"data": {"source": "text"}}, "data.path"),
        ({"data": {"path": "x"}}, "data.path"),
        ({"data": {"source": "reasoning_gym"}}, "data.task"),
        ({"data": {"task": "x"}}, "data.task"),
        ({"data": {"options": {"a": 1}}}, "data.options"),
        ({"student": {}}, "student.path"),
        ({"student": {"path": "a", "config": {"model_type": "llama"}}}, "student.path"),
        ({"student": {"config": {"model_type": "llama"}}}, "student.tokenizer"),
        ({"student__attn_implementation": "flash_attention_2"}, "student.attn_implementation"),
        ({"teacher": {"kind": "frozen"}}, "teacher.path"),
        ({**SFT, "teacher": {"kind": "none", "path": "t"}, "rollout": {}}, "teacher.kind"),
        ({"optimizer": {"momentum": 0.9}}, "optimizer.momentum"),
        ({"trainer": {"strategy": "ddp"}}, "trainer.strategy"),
        ({"resume": "/no/such/run"}, "resume"),
    ],
)
def test_impossible_combinations_are_refused(changes: dict[str, Any], key: str) -> None:
    found = errors(GOOD, **changes)
    assert list(found) == [key]
    assert found[key].startswith(f"`{key}` must be ")


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"divergence": "sampled_token", "ratio_clip": 2.0}},
        {"objective": {"label_weight": 0.5}, "rollout__on_policy_fraction": 0.5},
        {"objective": {"divergence": "skew_forward_kl", "alpha": 0.0}},
        {"rollout__samples_per_prompt": 4},
        {"rollout__temperature": 0},
        {"data": {"source": "text", "path": "x", "eval_path": "y"}},
        {"data": {"source": "reasoning_gym", "task": "x", "options": {"a": 1}}},
        {"optimizer": {"name": "sgd", "momentum": 0.9, "warmup_steps": 100}},
        {"callbacks": {"evaluation": None}, "data": {"eval_size": 4}},
        {"resume": "auto"},
    ],
)
def test_possible_combinations_pass(changes: dict[str, Any]) -> None:
    assert errors(GOOD, **changes) == {}


BEST = {"keep_best": 1, "monitor": "eval/accuracy"}


@pytest.mark.parametrize(
    ("options", "evaluated", "key"),
    [
        ({"keep_best": 1}, 100, "callbacks.checkpoint.monitor"),
        ({"keep_every_n_steps": 150}, 100, "callbacks.checkpoint.keep_every_n_steps"),
        (BEST, None, "callbacks.evaluation.every_n_steps"),
        (BEST, 30, "callbacks.evaluation.every_n_steps"),
        (BEST, 50, None),
        (BEST, 300, None),
        ({"keep_best": 2, "monitor": "loss", "mode": "min", "keep_every_n_steps": 300}, None, None),
    ],
)
def test_what_is_kept_can_be_told_apart(options: dict[str, Any], evaluated: int | None, key: str | None) -> None:
    # A checkpoint is saved every 100 steps.
    found = errors(GOOD, callbacks={"checkpoint": options, "evaluation": {"every_n_steps": evaluated}})
    assert list(found) == ([] if key is None else [key])


def test_resume_takes_a_folder(tmp_path: Path) -> None:
    assert errors(GOOD, resume=str(tmp_path)) == {}


def test_processes_and_strategy_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torchrun --standalone" in errors(GOOD, trainer={"strategy": "ddp"})["trainer.strategy"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert errors(GOOD, trainer={"strategy": "ddp"}) == {}
    assert list(errors(GOOD)) == ["trainer.strategy"]
    assert list(errors(GOOD, trainer={"strategy": "ddp"}, data={"batch_size": 15})) == ["data.batch_size"]


def test_a_run_can_be_checked_without_its_processes() -> None:
    raw = merged(GOOD, {"trainer.strategy": "ddp"})
    assert validate(raw, TrainConfig, checks.run)["trainer"]["strategy"] == "ddp"


def test_evaluation_has_its_own_checks() -> None:
    raw = {"checkpoint": "x", "data": {"source": "text"}, "teacher": {"kind": "frozen"}}
    with pytest.raises(ConfigError) as caught:
        validate(raw, EvalConfig, checks.evaluate)
    assert [problem.key for problem in caught.value.problems] == ["data.path", "teacher.path"]


def test_moments_are_asked_of_optimizers_that_have_some() -> None:
    state = {"callbacks__optimizer_state": {"every_n_steps": 5}}
    assert list(errors(GOOD, optimizer={"name": "sgd"}, **state)) == ["optimizer.momentum"]
    assert errors(GOOD, optimizer={"name": "sgd", "momentum": 0.9}, **state) == errors(GOOD, **state) == {}


def test_extrapolation_moves_weights_themselves_and_alone() -> None:
    part: dict[str, Any] = {"callbacks__extrapolation": {}}
    assert errors(GOOD, **part) == errors(GOOD, **part, callbacks__update_mask={"path": "m"}) == {}
    assert list(errors(GOOD, **part, student__lora={})) == ["callbacks.extrapolation"]
    found = errors(GOOD, **part, callbacks__gradient_subspace={"warmup_steps": 10})
    assert list(found) == ["callbacks.extrapolation"]
    assert "null with callbacks.gradient_subspace" in found["callbacks.extrapolation"]


def test_gradient_variance_takes_a_teacher_and_prompts_for_its_blocks() -> None:
    part: dict[str, Any] = {"callbacks__gradient_variance": {"blocks": 4}}
    enough = {"data__batch_size": 8, "rollout__samples_per_prompt": 2}
    assert errors(GOOD, **part, **enough) == {}
    few = errors(GOOD, **part, **enough | {"data__batch_size": 6})
    assert "at most 3, the prompts of a step" in few["callbacks.gradient_variance.blocks"]
    assert "callbacks.gradient_variance.blocks" in errors(GOOD, callbacks__gradient_variance={"blocks": 2})
    assert "null without a teacher" in errors(SFT, **part)["callbacks.gradient_variance"]
    found = errors(GOOD, **part, **enough, callbacks__gradient_subspace={"warmup_steps": 10})
    assert "null with callbacks.gradient_subspace" in found["callbacks.gradient_variance"]
    assert "callbacks.gradient_variance.horizon" in errors(GOOD, callbacks__gradient_variance={"horizon": 0})


def test_a_subspace_leaves_steps_to_confine_and_is_not_for_adapters() -> None:
    part = {"callbacks__gradient_subspace": {"warmup_steps": 100}}
    assert list(errors(GOOD, **part)) == ["callbacks.gradient_subspace.warmup_steps"]
    assert errors(GOOD, **part, trainer__max_steps=101) == {}
    assert list(errors(GOOD, **part, trainer__max_steps=101, student__lora={})) == ["callbacks.gradient_subspace"]
    both = {"gradient_subspace": {"warmup_steps": 10}, "update_mask": {"path": "m"}}
    found = errors(GOOD, callbacks=both)
    assert list(found) == ["callbacks.gradient_subspace"]
    assert "null with callbacks.update_mask" in found["callbacks.gradient_subspace"]
