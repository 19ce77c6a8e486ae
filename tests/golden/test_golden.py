"""Twenty steps of every recipe against recorded losses: a refactoring must not move them.

A commit that means to change them says why and runs ``python -m tests.golden.test_golden``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.commands.train import run
from tests import masks, tiny

FILE = Path(__file__).with_name("losses.json")


SUBNETWORK = "subnetwork"
"""On-policy distillation inside of a mask."""
TWO_STAGE = "two_stage"
"""Offline distillation of all rows, then of a few: ten steps each."""
KD_VARIANCE = "kd_variance"
"""Images, and SGD."""
ADM = "online_adm"
"""Online distillation with feature terms."""
ADAPTED = "online_lora"
"""Online distillation through an adapter."""
SEGMENTATION = "offline_kd of pixels"
"""No recipe of its own: another task."""
STAGES: dict[str, dict[str, Any]] = {"synthetic": {}, "annotated": {"data": {"limit": 30}}}
BASE = {SUBNETWORK: "opd", TWO_STAGE: "offline_kd", KD_VARIANCE: "sft", SEGMENTATION: "offline_kd"}
BASE |= dict.fromkeys((ADM, ADAPTED), "online_kd")
"""What goes on top of another recipe."""
RECIPES = (*tiny.RECIPES, *BASE)


def losses(recipe: str, run_dir: Path) -> list[float]:
    options = {"trainer__max_steps": 20, "callbacks__checkpoint": None, "callbacks__evaluation": None}
    sections = {KD_VARIANCE: tiny.REDUCED, SEGMENTATION: tiny.MASKS, ADM: {"adm": {"divergence": 0.1}}}
    sections |= {ADAPTED: tiny.ADAPTED}
    config = tiny.config(BASE.get(recipe, recipe), **sections.get(recipe, {}), **options)
    if recipe == SUBNETWORK:
        mask = masks.write(run_dir.with_name("mask.safetensors"), config, density=0.3)
        config["callbacks"]["update_mask"] = {"path": str(mask)}
    if recipe == TWO_STAGE:
        config |= {"stages": STAGES}
        config["trainer"]["max_steps"] = 10
    assert run(config, run_dir) == 0
    return [record["loss"] for record in tiny.metrics(run_dir) if "loss" in record]


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_the_recorded_ones(recipe: str, tmp_path: Path) -> None:
    recorded = json.loads(FILE.read_text())[recipe]
    assert len(recorded) == 20
    assert losses(recipe, tmp_path / recipe) == pytest.approx(recorded, rel=2e-3)


def test_every_recipe_is_recorded() -> None:
    recipes = {path.stem for path in (Path(__file__).parents[2] / "conf" / "recipe").glob("*.yaml")}
    assert set(json.loads(FILE.read_text())) == recipes | {SEGMENTATION} == set(RECIPES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {recipe: losses(recipe, Path(folder, recipe)) for recipe in RECIPES}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
