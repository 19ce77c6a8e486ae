from typing import Any

import pytest

from distill.config import checks, schema_analyze
from distill.config.schema import TrainConfig
from distill.config.schema_analyze import AnalyzeConfig
from distill.config.validate import ConfigError, validate
from distill.errors import UserError

GOOD: dict[str, Any] = {
    "student": {"path": "s"},
    "teacher": {"kind": "frozen", "path": "t"},
    "rollout": {"kind": "on_policy"},
}


def problems(raw: dict[str, Any]) -> tuple[UserError, ...]:
    with pytest.raises(ConfigError) as caught:
        validate({**GOOD, **raw}, TrainConfig, checks.train)
    return caught.value.problems


def only(raw: dict[str, Any]) -> str:
    [problem] = problems(raw)
    return str(problem)


def test_result_is_plain_and_complete() -> None:
    config = validate(GOOD, TrainConfig, checks.train)
    assert config["optimizer"]["betas"] == [0.9, 0.999]
    assert config["objective"]["divergence"] == "reverse_kl"
    assert type(config["optimizer"]) is dict


def test_a_components_target_survives() -> None:
    extra = {"mine": {"_target_": "lightning.pytorch.callbacks.Timer", "duration": "00:01:00:00"}}
    config = validate({**GOOD, "callbacks": {"extra": extra}}, TrainConfig, checks.train)
    assert config["callbacks"]["extra"] == extra


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"seed": "x"}, "`seed` must be a whole number, but is 'x'."),
        ({"seed": True}, "`seed` must be a whole number, but is True."),
        ({"seed": 1.5}, "`seed` must be a whole number, but is 1.5."),
        ({"seed": None}, "`seed` must be a whole number, but is None."),
        ({"seed": -1}, "`seed` must be greater than or equal to 0, but is -1."),
        ({"optimizer": {"lr": "fast"}}, "`optimizer.lr` must be a number, but is 'fast'."),
        ({"optimizer": 3}, "`optimizer` must be a group of keys (KEY.NAME=VALUE), but is 3."),
        ({"data": {"chat_template": 3}}, "`data.chat_template` must be true or false, but is 3."),
        ({"trainer": {"micro_batch_size": 0}}, "`trainer.micro_batch_size` must be greater than 0 or null, but is 0."),
        ({"run_name": "a/b"}, r"`run_name` must be text of the form ^[\w.+-]+$, but is 'a/b'."),
        ({"resume": 3}, """`resume` must be text (a number needs quotes: '"5"') or null, but is 3."""),
        ({"logger": {"tags": "a"}}, "`logger.tags` must be a list (KEY=[VALUE,…]), but is 'a'."),
        (
            {"optimizer": {"name": "adam"}},
            "`optimizer.name` must be one of 'adamw' or 'sgd' (did you mean 'adamw'?), but is 'adam'.",
        ),
        (
            {"student": {"path": "s", "lora": {"target_modules": 3}}},
            "`student.lora.target_modules` must be text (a number needs quotes: '\"5\"') or a list (KEY=[VALUE,…]), "
            "but is 3.",
        ),
        (
            {"callbacks": {"extra": {"x": {"a": 1}}}},
            "`callbacks.extra.x._target_` must be given (it has no default), but is None.",
        ),
    ],
)
def test_one_mistake_is_one_line(raw: dict[str, Any], line: str) -> None:
    assert only(raw) == line


@pytest.mark.parametrize(
    ("raw", "key", "hint"),
    [
        ({"typo": 1}, "typo", "The top level has seed, resume"),
        ({"lr": 0.1}, "lr", "did you mean `optimizer.lr`?"),
        ({"optimizr": {"lr": 1}}, "optimizr.lr", "did you mean `optimizer.lr`?"),
        ({"objective": {"betta": 1}}, "objective.betta", "did you mean `objective.beta`?"),
        ({"objective": {"max_new_tokens": 1}}, "objective.max_new_tokens", "did you mean `rollout.max_new_tokens`?"),
        ({"callbacks": {"sparsity": {"every": 1}}}, "callbacks.sparsity.every", "has every_n_steps"),
    ],
)
def test_unknown_keys_name_a_close_match_and_what_there_is(raw: dict[str, Any], key: str, hint: str) -> None:
    line = only(raw)
    assert line.startswith(f"`{key}` must be a known key (")
    assert hint in line


def test_all_mistakes_come_in_one_list() -> None:
    raw = {
        "typo": 1,
        "seed": "x",
        "objective": {"divergence": "jsd", "beta": 0.0, "betta": 1},
        "rollout": {"kind": "on_policy", "samples_per_prompt": 3},
        "callbacks": {"extra": {"x": {"_target_": "os.system"}}},
    }
    found = problems(raw)
    assert {problem.key for problem in found} == {
        "typo", "seed", "objective.betta", "objective.beta", "data.batch_size", "callbacks.extra.x._target_"
    }  # fmt: skip
    assert len(str(ConfigError(found)).splitlines()) == 6


def test_a_combination_with_a_wrong_value_is_not_judged() -> None:
    found = problems({"data": {"batch_size": "x"}, "rollout": {"kind": "on_policy", "samples_per_prompt": 3}})
    assert [problem.key for problem in found] == ["data.batch_size"]
    assert "whole number" in str(found[0])


def test_missing_values_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"seed": "x"}, AnalyzeConfig, schema_analyze.check)
    assert [problem.key for problem in caught.value.problems] == ["source", "trained", "out", "seed"]


def test_secrets_are_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_API_KEY", "planted-in-environment")
    token = "hf_" + "q" * 30
    raw = {
        "logger": {"hub_token": "plain-looking-value"},
        "junk": {"nested": f"x {token}"},
        token: 1,
        "seed": "planted-in-environment",
        "data": {"source": "text", "path": None, "options": {"password": "swordfish"}},
    }
    with pytest.raises(ConfigError) as caught:
        validate({**GOOD, **raw}, TrainConfig, checks.train)
    text = str(caught.value)
    for secret in ("plain-looking-value", token, "planted-in-environment", "swordfish"):
        assert secret not in text
    assert "`logger.hub_token`" in text


def test_config_error_is_a_user_error() -> None:
    with pytest.raises(UserError) as caught:
        validate({**GOOD, "seed": "x"}, TrainConfig, checks.train)
    assert (caught.value.key, caught.value.value) == ("seed", "x")
