"""A teacher whose logits turn to NaN ends the run in one line, whatever is made of them, and what was saved stays; one
that only ever ends the sequence is learned from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import checkpoint, training
from distill.commands import cache
from distill.commands.train import run
from distill.config.schema_cache import CacheConfig
from distill.errors import RunError
from distill.models import CausalLM
from distill.teachers.frozen import FrozenTeacher
from distill.types import MicroBatch, Signal
from tests import tiny

Spoil = Callable[[Callable[[CausalLM], None]], None]


@pytest.mark.parametrize("divergence", ["forward_kl", "pearson"])
def test_a_teacher_that_turns_to_nan_is_named(divergence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    signal = FrozenTeacher.signal

    def breaking(self: FrozenTeacher, batch: MicroBatch) -> Signal:
        nonlocal asked
        asked += 1
        found = signal(self, batch)
        return found if asked < 4 else Signal(torch.full_like(found.hidden, torch.nan), found.head)

    monkeypatch.setattr(FrozenTeacher, "signal", breaking)
    options = {"callbacks__evaluation": None, "callbacks__checkpoint__every_n_steps": 1}
    with pytest.raises(RunError, match="The teacher's logits are NaN") as caught:
        run(tiny.config("offline_kd", objective__divergence=divergence, **options), tmp_path)
    assert "\n" not in str(caught.value)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.verify(newest).step == 3


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Has every frozen teacher changed as soon as it is built."""

    def spoil_by(change: Callable[[CausalLM], None]) -> None:
        build = training.build_models

        def spoiled(config: dict[str, Any]) -> Any:
            lm, teacher = build(config)
            if config["teacher"]["kind"] != "cached":
                for each in getattr(teacher, "members", {"": teacher}).values():
                    change(each.lm)
            return lm, teacher

        monkeypatch.setattr(training, "build_models", spoiled)

    return spoil_by


def nan(lm: CausalLM) -> None:
    lm.model.model.norm.weight.data.fill_(math.nan)


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("recipe", ["opd", "speculative_kd", "offline_kd", "multi_teacher"])
def test_a_teacher_of_nan_is_named_before_anything_is_learned(
    recipe: str, judged: bool, tmp_path: Path, spoil: Spoil
) -> None:
    spoil(nan)
    with pytest.raises(RunError, match=r"^The teacher's logits are (NaN|not finite)") as caught:
        run(tiny.config(recipe, **({} if judged else {"callbacks__evaluation": None})), tmp_path)
    assert "\n" not in str(caught.value)
    assert checkpoint.latest(tmp_path) is None


def ending(lm: CausalLM) -> None:
    """Every token is followed by the end of the sequence."""
    for parameter in lm.model.parameters():
        parameter.data.zero_()
    for constant in (lm.model.model.embed_tokens, lm.model.model.norm):
        constant.weight.data.fill_(1)
    rows = lm.model.lm_head.weight.data
    # No ties, which a speculative rollout would accept.
    rows += torch.linspace(0, -1, len(rows))[:, None] / rows.shape[1]
    rows[min(lm.eos_ids)] = 40 / rows.shape[1]


SILENT = {"teacher__config": tiny.llama(16, tied=False)}


@pytest.mark.parametrize("recipe", ["opd", "speculative_kd"])
def test_from_a_teacher_that_only_stops_a_student_learns_to_stop(recipe: str, tmp_path: Path, spoil: Spoil) -> None:
    spoil(ending)
    assert run(tiny.config(recipe, **SILENT, trainer__max_steps=8), tmp_path) == 0
    records = tiny.metrics(tmp_path)
    losses = [record["loss"] for record in records if "loss" in record]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert (records[0]["eval/stopped"], records[-1]["eval/stopped"], records[-1]["eval/length"]) == (0, 1, 1)
    assert recipe == "opd" or records[1]["replaced"] > 0.5, "by the end of the sequence"


def test_a_cache_of_a_teacher_that_only_stops_is_what_it_says(tmp_path: Path, spoil: Spoil) -> None:
    spoil(ending)
    config = tiny.config("offline_kd", **SILENT, data__limit=60, callbacks__evaluation=None)
    made = CacheConfig(**config, cache={"out": str(tmp_path / "cache"), "k": 4})
    assert cache.run(made.model_dump(by_alias=True), tmp_path / "cache") == 0
    cached = tiny.config("offline_kd", data__limit=60, callbacks__evaluation=None)
    cached["teacher"] |= {"kind": "cached", "config": None, "cache": str(tmp_path / "cache")}
    live = config | {"objective": config["objective"] | {"divergence": "topk_forward_kl", "k": 4, "tail": "bucket"}}
    assert run(cached, tmp_path / "cached") == run(live, tmp_path / "live") == 0
    ours, theirs = (
        [record["loss"] for record in tiny.metrics(tmp_path / name) if "loss" in record] for name in ("cached", "live")
    )
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0]
