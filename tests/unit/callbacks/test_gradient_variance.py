"""When it measures, on which samples, what it records, what it refuses; and that training keeps every bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.callbacks.gradient_variance import KEYS
from distill.commands import cache
from distill.commands.train import run
from distill.config.schema_cache import CacheConfig
from distill.errors import UserError
from tests import tiny

PART = {"every_n_steps": 2, "blocks": 4}
OFF = {"sparsity": None, "evaluation": None, "checkpoint": None}
TAUGHT = [recipe for recipe in tiny.RECIPES if recipe not in ("sft", "online_kd")]


def settings(recipe: str, **changes: Any) -> dict[str, Any]:
    return tiny.config(recipe, **{"trainer__max_steps": 4, "callbacks": {**OFF, "gradient_variance": PART}, **changes})


def measured(run_dir: Path) -> dict[int, dict[str, float]]:
    found = {int(r["step"]): {k: v for k, v in r.items() if "gradient_variance" in k} for r in tiny.metrics(run_dir)}
    return {step: values for step, values in found.items() if values}


@pytest.mark.parametrize("recipe", TAUGHT)
def test_any_recipe_with_a_teacher_is_measured_and_keeps_its_bits(recipe: str, tmp_path: Path) -> None:
    changes = {"trainer__micro_batch_size": 5, "student__config": {**tiny.llama(8), "attention_dropout": 0.3}}
    if recipe == "self_distillation":
        changes["student__config"]["initializer_range"] = 0.3
    for name, part in (("with", PART), ("without", None)):
        config = settings(recipe, **changes, callbacks={**OFF, "gradient_variance": part})
        assert run(config, tmp_path / name) == 0
    found = measured(tmp_path / "with")
    assert list(found) == [0, 2, 4]
    assert all(set(values) == set(KEYS) for values in found.values())
    assert all(values["gradient_variance/ce"] > 0 for values in found.values())
    assert not measured(tmp_path / "without")
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    losses = [[r["loss"] for r in tiny.metrics(tmp_path / name) if "loss" in r] for name in ("with", "without")]
    assert losses[0] == losses[1]


def test_it_measures_the_samples_of_the_next_step(tmp_path: Path) -> None:
    """As many targets as the step then has, at different steps; resumed, those of the uninterrupted run."""
    saved = {"callbacks": {**OFF, "checkpoint": {"every_n_steps": 2}, "gradient_variance": PART}}
    assert run(settings("offline_kd", **saved, trainer__max_steps=6), tmp_path / "whole") == 0
    whole = tiny.metrics(tmp_path / "whole")
    trained = {record["step"]: record["positions"] for record in whole if "positions" in record}
    assert len(set(trained.values())) > 1
    found = measured(tmp_path / "whole")
    for step in (0, 2, 4):
        assert found[step]["gradient_variance/positions"] == trained[step + 1]
    last = tmp_path / "whole" / "checkpoints" / "step-00000004"
    assert run(settings("offline_kd", **saved, trainer__max_steps=6, resume=str(last)), tmp_path / "resumed") == 0
    again = measured(tmp_path / "resumed")
    assert list(again) == [6]
    for key, value in found[6].items():
        assert key.startswith("time/") or again[6][key] == value


def test_the_longer_the_horizon_the_smaller_lambda(tmp_path: Path) -> None:
    shares = []
    for horizon in (0.5, 4.0, 4.0, None):
        path = tmp_path / str(len(shares))
        part = {**PART, "horizon": horizon}
        assert run(settings("offline_kd", callbacks={**OFF, "gradient_variance": part}), path) == 0
        first = measured(path)[0]
        shares.append(first["gradient_variance/lambda"])
        assert first["gradient_variance/lambda"] <= first["gradient_variance/lambda_upper"]
    # Without one it is trainer.max_steps, which are 4.
    assert shares[0] > shares[1] == shares[2] == shares[3] > 0


def test_prompts_alone_are_refused_in_one_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}+{n}="}) + "\n" for n in range(40)))
    text = {"data__source": "text", "data__path": str(rows), "rollout__samples_per_prompt": 1}
    with pytest.raises(UserError, match=r"`callbacks\.gradient_variance` must be null for data without completions"):
        run(settings("opd", **text), tmp_path / "run")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_cached_teacher_is_asked_at_the_temperature_it_was_asked_at(temperature: float, tmp_path: Path) -> None:
    base = tiny.config("offline_kd", objective__temperature=temperature)
    made = CacheConfig(**base, cache={"out": str(tmp_path / "cache"), "shard_rows": 2000})
    assert cache.run(made.model_dump(by_alias=True), tmp_path) == 0
    teacher = {"kind": "cached", "cache": str(tmp_path / "cache")}
    config = settings("offline_kd", objective__temperature=temperature, teacher=teacher)
    if temperature == 1:
        assert run(config, tmp_path / "run") == 0
        assert run(settings("offline_kd"), tmp_path / "live") == 0
        ours, live = measured(tmp_path / "run")[0], measured(tmp_path / "live")[0]
        assert ours["gradient_variance/ce"] == pytest.approx(live["gradient_variance/ce"], rel=1e-5)
        return
    with pytest.raises(UserError, match=r"a cache made at temperature 2\.0: gradients are compared at 1"):
        run(config, tmp_path / "run")
