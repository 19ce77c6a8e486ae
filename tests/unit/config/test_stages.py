"""A run of several stages: what each becomes, what is refused and by which name, and what can be mixed."""

from __future__ import annotations

from typing import Any

import pytest

from distill.config import checks, schema_plan, stages
from distill.config.schema import TrainConfig
from distill.config.validate import ConfigError, validate

BASE: dict[str, Any] = {
    "student": {"path": "s"},
    "teacher": {"kind": "frozen", "path": "t"},
    "objective": {"divergence": "forward_kl"},
    "trainer": {"max_steps": 40},
}
STAGES: dict[str, Any] = {
    "first": {"data": {"source": "text", "path": "a.jsonl"}, "trainer": {"max_steps": 60}},
    "second": {"data": {"limit": 5}},
}


def config(given: Any = STAGES, order: str = "given", **changes: Any) -> dict[str, Any]:
    return validate({**BASE, "stages": given, "stages_order": order, **changes}, TrainConfig, checks.run)


def errors(given: Any, order: str = "given", **changes: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        config(given, order, **changes)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_a_stage_is_the_rest_with_its_own_keys() -> None:
    first, second = stages.of(config()).values()
    assert (first["data"]["path"], first["trainer"]["max_steps"]) == ("a.jsonl", 60)
    assert (second["data"]["source"], second["data"]["limit"], second["trainer"]["max_steps"]) == ("arithmetic", 5, 40)
    for one in (first, second):
        assert one["objective"] == config()["objective"]
        assert one["stages"] is None
        assert TrainConfig(**one).model_dump(mode="json", by_alias=True) == one


def test_a_stage_may_switch_a_section_on_or_off() -> None:
    given = {"on": {"callbacks": {"geometry": {"every_n_steps": 5}}}, "off": {"callbacks": {"sparsity": None}}}
    first, second = stages.of(config(given)).values()
    assert first["callbacks"]["geometry"] == {"every_n_steps": 5, "matrices": 7}
    assert second["callbacks"]["sparsity"] is None


def test_dictionaries_that_are_values_are_replaced() -> None:
    base = {"source": "reasoning_gym", "task": "gcd", "options": {"a": 1}}
    given = {"one": {}, "two": {"data": {"task": "lcm", "options": {"b": 2}}}}
    assert stages.of(config(given, data=base))["two"]["data"]["options"] == {"b": 2}


@pytest.mark.parametrize(("order", "names"), [("given", ["first", "second"]), ("reversed", ["second", "first"])])
def test_every_order_is_judged_by_the_data_of_the_last_stage_given(order: str, names: list[str]) -> None:
    found = stages.of(config(order=order))
    assert list(found) == names
    assert found["second"]["eval_data"] is None
    assert found["first"]["eval_data"] == found["second"]["data"]


def test_held_out_data_of_the_whole_is_that_of_every_stage() -> None:
    found = stages.of(config(eval_data={"source": "text", "path": "test.jsonl"}))
    assert {one["eval_data"]["path"] for one in found.values()} == {"test.jsonl"}


@pytest.mark.parametrize(
    ("given", "key", "text"),
    [
        ({"data": {"limt": 3}}, "stages.b.data.limt", "did you mean `data.limit`?"),
        ({"optimizer": {"lr": -1}}, "stages.b.optimizer.lr", "greater than 0"),
        ({"objective": {"logit_weight": 0.0}}, "stages.b.objective.logit_weight", "there is nothing to learn"),
        ({"rollout": {"draft_length": 2}}, "stages.b.rollout.draft_length", "choose rollout=speculative"),
        ({"teacher": {"kind": "none"}}, "stages.b.teacher.kind", "'frozen' when teacher.path"),
        ({"student": {"path": "x"}}, "stages.b.student.path", "start from the student of the one before"),
        ({"student": {"config": {"a": 1}}}, "stages.b.student.config.a", "start from the student of the one before"),
        ({"logger": {"wandb": "online"}}, "stages.b.logger.wandb", "the whole run's"),
        ({"resume": "auto"}, "stages.b.resume", "the whole run's"),
        ({"stages": {"c": {}}}, "stages.b.stages.c", "the whole run's"),
        ({"callbacks": {"update_mask": {"path": "m"}}}, "stages.b.callbacks.update_mask", "in every stage but 'a'"),
        ({"callbacks": {"extra": {"x": {"_target_": "os.system"}}}}, "stages.b.callbacks.extra.x._target_", "one of"),
    ],
)
def test_a_mistake_is_named_by_its_stage(given: dict[str, Any], key: str, text: str) -> None:
    found = errors({"a": {}, "b": given})
    assert key in found
    assert text in found[key]
    assert found[key].count("\n") == 0


def test_mistakes_of_all_stages_are_told_at_once() -> None:
    found = errors({"a": {"optimizer": {"lr": -1}}, "b": {"data": {"x": 1}, "run_name": "y"}}, seed=-1)
    assert set(found) == {"seed", "stages.a.optimizer.lr", "stages.b.data.x", "stages.b.run_name"}


def test_a_mistake_of_the_whole_is_told_once_by_its_own_name() -> None:
    assert list(errors({"a": {}, "b": {}}, teacher={"kind": "none"})) == ["objective.logit_weight"]


def test_a_mistake_in_the_whole_that_every_stage_mends_is_none() -> None:
    mended = {"optimizer": {"momentum": 0.0}}
    assert config({"a": mended, "b": mended}, optimizer={"momentum": 0.9})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"given": {"a": {}}}, "stages"),
        ({"given": {}}, "stages"),
        ({"given": {"a": {}, "b": 3}}, "stages.b"),
        ({"given": {"a": {}, "b/c": {}}}, "stages.b/c"),
        ({"given": None, "order": "mixed"}, "stages_order"),
        ({"given": STAGES, "order": "shuffled"}, "stages_order"),
        ({"given": STAGES, "resume": "/"}, "resume"),
    ],
)
def test_what_is_no_run_of_stages(changes: dict[str, Any], key: str) -> None:
    assert key in errors(**changes)


def test_a_mixture_is_one_run_of_all_steps() -> None:
    found = TrainConfig(**stages.mixed(config(order="mixed")))
    assert found.trainer.max_steps == 100
    assert {name: part.weight for name, part in found.data.parts.items()} == {"first": 16 * 60, "second": 16 * 40}
    assert (found.data.parts["first"].path, found.data.parts["second"].limit) == ("a.jsonl", 5)
    assert found.eval_data is not None
    assert found.eval_data.source == "arithmetic", "that of the last stage"
    assert found.stages is None


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"rollout": {"kind": "on_policy"}}, "rollout.kind"),
        ({"objective": {"divergence": "jsd"}}, "objective.divergence"),
        ({"data": {"batch_size": 8}}, "data.batch_size"),
        ({"optimizer": {"lr": 0.5}}, "optimizer.lr"),
    ],
)
def test_stages_that_differ_in_more_than_their_data_cannot_be_mixed(given: dict[str, Any], key: str) -> None:
    found = errors({"a": {}, "b": given}, "mixed")
    assert list(found) == [f"stages.b.{key}"]
    assert "the same in all stages with stages_order 'mixed'" in found[f"stages.b.{key}"]
    assert config({"a": {}, "b": given}), "one after the other they can run"


def test_a_mask_goes_with_a_mixture() -> None:
    config(order="mixed", callbacks={"update_mask": {"path": "m"}})


def test_several_processes_are_asked_for_in_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = {**BASE, "stages": {"a": {}, "b": {"data": {"batch_size": 3}}}, "trainer": {"strategy": "ddp"}}
    with pytest.raises(ConfigError, match=r"^`stages\.b\.data\.batch_size` must be a multiple of the number of"):
        validate(given, TrainConfig, checks.train)


def test_a_plan_asks_every_stage() -> None:
    given = {**BASE, "stages": {"a": {}, "b": {"data": {"batch_size": 3}}}, "plan": {"devices": 2}}
    with pytest.raises(ConfigError) as caught:
        validate(given, schema_plan.PlanConfig, schema_plan.check)
    assert [problem.key for problem in caught.value.problems] == ["trainer.strategy", "stages.b.data.batch_size"]


def test_what_a_file_says_without_being_valid_is_taken_as_it_is() -> None:
    broken = {"stages": {"a": {"optimizer": {"lr": "x"}}, "b": {}}, "trainer": {"max_steps": 3}}
    assert stages.recorded(broken) == [broken]
    assert len(stages.recorded(config())) == 2


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"source": "mixture"}, "data.parts"),
        ({"parts": {"a": {}}}, "data.parts"),
        ({"source": "mixture", "parts": {"a": {"source": "text"}}}, "data.parts.a.path"),
        ({"source": "mixture", "parts": {"a": {"source": "mixture"}}}, "data.parts.a.source"),
        ({"source": "mixture", "parts": {"a": {"weight": 0}}}, "data.parts.a.weight"),
        ({"source": "mixture", "parts": {"a": {}}, "limit": 3}, "data.limit"),
        ({"source": "mixture", "parts": {"a": {}}, "fraction": 0.5}, "data.fraction"),
    ],
)
def test_mixtures_of_sources(data: dict[str, Any], key: str) -> None:
    assert key in errors(None, data=data)


def test_held_out_data_is_checked_like_data() -> None:
    assert list(errors(None, eval_data={"source": "text"})) == ["eval_data.path"]
