"""Schedules: where they start and end, what is between, and what a run makes of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from distill import schedule
from distill.config import checks, schema_cache
from distill.config.schema import TrainConfig
from distill.config.validate import ConfigError, validate
from distill.schedule import of_run
from tests import tiny


def given(start: float, end: float, steps: int | None = None, shape: str = "linear") -> dict[str, Any]:
    return {"start": start, "end": end, "steps": steps, "shape": shape}


def values(spec: schedule.Given, max_steps: int) -> list[float]:
    return [schedule.value(spec, max_steps, step) for step in range(max_steps)]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize(("steps", "last"), [(None, 29), (11, 10), (2, 1), (50, None)])
def test_it_starts_at_the_first_step_and_ends_at_the_last(steps: int | None, last: int | None, shape: str) -> None:
    found = values(given(0.9, 0.1, steps, shape), 30)
    assert found[0] == 0.9
    assert all(before > after for before, after in pairwise(found[: last and last + 1]))
    if last is None:
        assert found[-1] > 0.1, "the run is over before the schedule"
    else:
        assert found[last:] == [0.1] * (30 - last), "exactly"


def test_a_line_and_half_a_cosine() -> None:
    assert values(given(0, 2, 5), 6) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert values(given(0, 2, 5, "cosine"), 5) == pytest.approx([0.0, 0.292893, 1.0, 1.707107, 2.0], abs=1e-6)


def test_a_number_stays() -> None:
    assert values(0.3, 4) == [0.3] * 4


@pytest.mark.parametrize(("spec", "low", "high"), [(0.5, 0.5, 0.5), (given(2, 1), 1, 2), (given(0, 4, 3), 0, 4)])
def test_bounds_and_mean_are_those_of_the_values(spec: schedule.Given, low: float, high: float) -> None:
    assert (schedule.lowest(spec), schedule.highest(spec)) == (low, high)
    found = values(spec, 7)
    assert low <= min(found) <= max(found) <= high
    assert schedule.mean(spec, 7) == pytest.approx(sum(found) / 7)


def test_the_schedules_of_a_run_are_of_its_steps() -> None:
    config = tiny.config("opd", rollout__temperature=given(1, 0.5), objective__temperature=2.0, trainer__max_steps=3)
    assert {key: [curve(step) for step in range(4)] for key, curve in of_run(config).items()} == {
        "rollout.temperature": [1.0, 0.75, 0.5, 0.5]
    }


BASE: dict[str, Any] = {
    "student": {"path": "s"},
    "teacher": {"kind": "frozen", "path": "t"},
    "rollout": {"kind": "on_policy"},
}


def errors(schema: Any = TrainConfig, check: Any = checks.run, **sections: dict[str, Any]) -> dict[str, str]:
    raw = BASE | {name: BASE.get(name, {}) | keys for name, keys in sections.items()}
    try:
        validate(raw, schema, check)
    except ConfigError as error:
        return {problem.key: str(problem) for problem in error.problems}
    return {}


@pytest.mark.parametrize(
    "sections",
    [
        {"rollout": {"on_policy_fraction": {"start": 0, "end": 1}}},
        {"rollout": {"temperature": {"start": 1, "end": 0, "shape": "cosine"}}},
        {"rollout": {"temperature": {"start": 1, "end": 0.1, "steps": 9}, "samples_per_prompt": 2}},
        {"objective": {"temperature": {"start": 4, "end": 1}}},
        {"rollout": {"on_policy_fraction": {"start": 0, "end": 1}}, "objective": {"label_weight": 0.5}},
        {"rollout": {"on_policy_fraction": {"start": 1, "end": 1}}, "objective": {"divergence": "sampled_token"}},
    ],
)
def test_sensible_schedules_pass(sections: dict[str, Any]) -> None:
    assert errors(**sections) == {}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"rollout": {"on_policy_fraction": {"start": 0, "end": 1.5}}}, "rollout.on_policy_fraction.end"),
        ({"rollout": {"temperature": {"start": -1, "end": 1}}}, "rollout.temperature.start"),
        ({"rollout": {"temperature": {"start": 1, "end": 1, "steps": 1}}}, "rollout.temperature.steps"),
        ({"rollout": {"temperature": {"start": 1, "end": 1, "shape": "x"}}}, "rollout.temperature.shape"),
        ({"rollout": {"temperature": {"start": 1}}}, "rollout.temperature.end"),
        ({"rollout": {"temperature": {"start": 1, "end": 1, "stps": 3}}}, "rollout.temperature.stps"),
        ({"rollout": {"temperature": {"start": True, "end": 1}}}, "rollout.temperature.start"),
        ({"rollout": {"temperature": "warm"}}, "rollout.temperature"),
        ({"objective": {"temperature": {"start": 1, "end": 0}}}, "objective.temperature.end"),
        ({"objective": {"temperature": 0}}, "objective.temperature"),
        ({"rollout": {"temperature": {"start": 1, "end": 0}, "samples_per_prompt": 2}}, "rollout.temperature"),
        (
            {
                "rollout": {"on_policy_fraction": {"start": 0.5, "end": 1}},
                "objective": {"divergence": "sampled_token"},
            },
            "rollout.on_policy_fraction",
        ),
        (
            {"rollout": {"temperature": {"start": 1, "end": 0}}, "objective": {"divergence": "sampled_token"}},
            "rollout.temperature",
        ),
        (
            {"rollout": {"on_policy_fraction": {"start": 1, "end": 1}}, "objective": {"label_weight": 0.5}},
            "objective.label_weight",
        ),
        ({"rollout": {"kind": "dataset", "temperature": {"start": 1, "end": 2}}}, "rollout.temperature"),
        ({"rollout": {"kind": "dataset", "on_policy_fraction": {"start": 0, "end": 1}}}, "rollout.on_policy_fraction"),
    ],
)
def test_the_whole_range_is_checked(sections: dict[str, Any], key: str) -> None:
    assert list(errors(**sections)) == [key]


def test_a_divergence_without_weight_has_no_temperature_to_change() -> None:
    sections = {"teacher": {"kind": "none", "path": None}, "rollout": {"kind": "dataset"}}
    weights = {"label_weight": 1, "logit_weight": 0, "temperature": {"start": 2, "end": 1}}
    assert list(errors(**sections, objective=weights)) == ["objective.temperature"]


def test_a_cache_is_of_one_temperature() -> None:
    given_to = {"rollout": {"kind": "dataset"}, "objective": {"temperature": {"start": 2, "end": 1}}}
    cache = (schema_cache.CacheConfig, schema_cache.check)
    assert list(errors(*cache, **given_to)) == ["objective.temperature"]
    assert errors(*cache, **given_to, cache={"states": True}) == {}
