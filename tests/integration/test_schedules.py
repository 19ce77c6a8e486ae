"""Runs whose on-policy fraction and temperatures change: what is recorded, what is drawn, and exact resumption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import schedule
from distill.commands.train import run
from distill.planning import plan
from distill.rollouts.mixed import is_on_policy
from tests import tiny
from tests.integration.test_resume import assert_same_run

STEPS = 12
SCHEDULES = {
    "rollout.on_policy_fraction": {"start": 0.0, "end": 1.0, "steps": 10, "shape": "linear"},
    "rollout.temperature": {"start": 2.0, "end": 0.5, "steps": None, "shape": "cosine"},
    "objective.temperature": {"start": 4.0, "end": 1.0, "steps": 6, "shape": "linear"},
}


def settings(given: dict[str, Any] = SCHEDULES, recipe: str = "opd", **changes: Any) -> dict[str, Any]:
    keys = {key.replace(".", "__"): value for key, value in given.items()}
    options = {"trainer__max_steps": STEPS, "callbacks__evaluation": None, "callbacks__sparsity": None}
    return tiny.config(recipe, **keys | options | {"callbacks__checkpoint": {"every_n_steps": 5}} | changes)


@pytest.fixture(autouse=True)
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.commands.train.render", lambda records, out: out.write_text(""))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    torch.set_num_threads(1)
    assert run(settings(), folder) == 0
    return folder


def taken(run_dir: Path) -> list[dict[str, float]]:
    return [record for record in tiny.metrics(run_dir) if "loss" in record]


def test_each_step_records_its_values(straight: Path) -> None:
    records = taken(straight)
    assert len(records) == STEPS
    for key, given in SCHEDULES.items():
        expected = [schedule.value(given, STEPS, step) for step in range(STEPS)]
        assert [record[f"schedule/{key}"] for record in records] == expected


def test_the_fraction_of_a_step_decides_it(straight: Path) -> None:
    fraction = schedule.curve(SCHEDULES["rollout.on_policy_fraction"], STEPS)
    drawn = [record["on_policy"] for record in taken(straight)]
    assert drawn == [float(is_on_policy(0, step, fraction(step))) for step in range(STEPS)]
    assert drawn[0] == 0
    assert drawn[-3:] == [1, 1, 1]


@pytest.mark.parametrize("recipe", ["opd", "speculative_kd"])
def test_a_schedule_that_does_not_move_is_the_number(recipe: str, tmp_path: Path) -> None:
    numbers = {"rollout.temperature": 0.7, "objective.temperature": 2.0}
    still = {key: {"start": value, "end": value} for key, value in numbers.items()}
    for name, given in (("numbers", numbers), ("schedules", still)):
        assert run(settings(given, recipe, trainer__max_steps=3, callbacks__checkpoint=None), tmp_path / name) == 0
    for one, other in zip(taken(tmp_path / "numbers"), taken(tmp_path / "schedules"), strict=True):
        assert {key: other[key] for key in one if not key.startswith(("time", "tokens_per"))} == {
            key: value for key, value in one.items() if not key.startswith(("time", "tokens_per"))
        }
        assert other["schedule/rollout.temperature"] == 0.7


def test_resumed_in_the_middle_of_its_schedules(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "samples.jsonl").touch()
    (straight / "samples.jsonl").touch()
    assert run(settings(resume="auto"), tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", straight)


def test_a_plan_takes_the_mean_of_the_fraction() -> None:
    config = settings()
    made = plan.make(config | {"plan": plan.HERE}, plan.prepare(config | {"plan": plan.HERE}))
    whole = settings({"rollout.on_policy_fraction": 1.0})
    all_sampled = plan.make(whole | {"plan": plan.HERE}, plan.prepare(whole | {"plan": plan.HERE}))
    mean = schedule.mean(SCHEDULES["rollout.on_policy_fraction"], STEPS)
    assert made.tokens["sampled per step"] == pytest.approx(mean * all_sampled.tokens["sampled per step"], abs=1)
    assert json.dumps(made.as_dict())
