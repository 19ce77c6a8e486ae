"""The model card: recipe, teacher, data and what was measured."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from distill.report.card import render
from tests import tiny

RECORDS = (
    {"step": 0, "eval/accuracy": 0.25, "eval/teacher_accuracy": 0.9, "eval/reverse_kl": 1.5},
    {"step": 6, "eval/accuracy": 0.75, "eval/reverse_kl": 0.5, "sparsity/bf16/1e-5": 0.7},
)


def card(recipe: str = "opd", held_out: int = 8, **changes: Any) -> str:
    return render(tiny.config(recipe, **changes), RECORDS, {"source": "text", "path": "rows.jsonl"}, held_out)


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_the_recipe_is_named_whatever_the_run_is_called(recipe: str) -> None:
    text = card(recipe, run_name="my-run")
    header = yaml.safe_load(text.split("---")[1])
    assert header["tags"] == ["distill", recipe]
    assert "# my-run" in text
    assert f"by the recipe `{recipe}`" in text


def test_teacher_data_and_objective() -> None:
    text = card("offline_kd", teacher__config=None, teacher__path="models/teacher")
    assert "| teacher | `models/teacher` |" in text
    assert "| data | source: text, path: rows.jsonl |" in text
    assert "| objective | 0.5 · cross-entropy + 0.5 · forward_kl |" in text
    assert "| teacher | none |" in card("sft")


def test_measured_before_and_after_on_the_prompts_there_were() -> None:
    text = card(held_out=5)
    assert "On 5 held-out prompts" in text
    assert "| accuracy | 0.25 | 0.75 |" in text
    assert "| update sparsity (bf16, tolerance 1e-5) |  | 0.7 |" in text
    assert "relative norm" not in text
