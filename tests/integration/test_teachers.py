"""Runs with several teachers, and with the student as its own: evaluated, resumed, reported and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.commands import eval as evaluation
from distill.commands.train import run
from distill.config.schema import EvalConfig
from distill.errors import UserError
from tests import tiny

OFF = {"callbacks__sparsity": None}


def rows(path: Path, domains: list[str | None]) -> dict[str, Any]:
    """The changes that make a run read sums from a file, each of which names its teacher."""
    content = [
        {"prompt": f"{i}+{2 * i}=", "completion": str(3 * i), "answer": 3 * i, "domain": domain}
        for i, domain in enumerate(domains)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return {"data__source": "text", "data__path": str(path), "teacher__by": "domain"}


@pytest.mark.parametrize("recipe", ["self_distillation", "multi_teacher"])
def test_a_finished_run_is_evaluated_against_its_own_teacher(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = rows(tmp_path / "rows.jsonl", ["wide", "deep"] * 12) if recipe == "multi_teacher" else {}
    told = {"teacher__prompt": "{answer} {prompt}"}
    assert run(tiny.config(recipe, **own, **told, **OFF), tmp_path / "run") == 0
    capsys.readouterr()
    asked = EvalConfig(checkpoint=str(tmp_path / "run")).model_dump()
    assert evaluation.run(asked, tmp_path) == 0
    found, last = json.loads(capsys.readouterr().out), tiny.metrics(tmp_path / "run")[-1]
    assert last["eval/reverse_kl"] > 1e-3
    for key in ("eval/accuracy", "eval/reverse_kl", "eval/forward_kl"):
        assert found[key] == pytest.approx(last[key], rel=1e-5)
    for page in ("model/README.md", "report.html"):
        text = (tmp_path / "run" / page).read_text()
        members = ("wide", "deep", "domain") if recipe == "multi_teacher" else ("the student itself",)
        assert all(word in text for word in (*members, "{answer} {prompt}")), page


def test_resumed_in_other_micro_batches_it_ends_where_it_would_have(tmp_path: Path) -> None:
    recipe, options = "self_distillation", {**OFF, "callbacks__evaluation": None}
    for steps, micro in ((4, None), (8, 5)):
        changes = {"trainer__max_steps": steps, "trainer__micro_batch_size": micro}
        assert run(tiny.config(recipe, **options, **changes, resume="auto"), tmp_path / "parts") == 0
    assert run(tiny.config(recipe, **options, trainer__max_steps=8), tmp_path / "whole") == 0
    ours, whole = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("parts", "whole"))
    for name, tensor in whole.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bad", "place"), [(3, "line 4"), (23, "line 24")])
def test_a_row_that_names_no_member_ends_the_run_before_it_starts(bad: int, place: str, tmp_path: Path) -> None:
    """Of the training rows, and of those that are held out."""
    domains: list[str | None] = ["wide", "deep"] * 12
    domains[bad] = "law"
    with pytest.raises(UserError, match=rf"wide, deep, but is .*rows.jsonl, {place}: `domain` 'law'"):
        run(tiny.config("multi_teacher", **rows(tmp_path / "rows.jsonl", domains)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_frozen_copy_starts_like_the_student_itself(tmp_path: Path) -> None:
    """The first step's loss and gradient, on the student's own rollouts."""
    options = {**OFF, "callbacks__evaluation": None, "callbacks__checkpoint": None, "trainer__max_steps": 2}
    student = tiny.config("self_distillation")["student"]
    copy = {f"teacher__{key}": student[key] for key in ("config", "tokenizer")} | {"teacher__kind": "frozen"}
    assert run(tiny.config("self_distillation", **options), tmp_path / "live") == 0
    assert run(tiny.config("self_distillation", **options, **copy), tmp_path / "held") == 0
    live, held = ([r for r in tiny.metrics(tmp_path / name) if "loss" in r] for name in ("live", "held"))
    assert live[0]["loss"] == held[0]["loss"] > 1e-3
    assert live[0]["grad_norm"] == held[0]["grad_norm"]
    assert live[1]["loss"] != held[1]["loss"], "the copy stays where it was"
