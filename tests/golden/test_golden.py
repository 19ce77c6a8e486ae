"""Twenty steps of every recipe against recorded losses: a refactoring must not move them.

A commit that means to change them says why and runs ``python -m tests.golden.test_golden``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from distill.commands.train import run
from tests import tiny

FILE = Path(__file__).with_name("losses.json")


def losses(recipe: str, run_dir: Path) -> list[float]:
    config = tiny.config(recipe, trainer__max_steps=20, callbacks__checkpoint=None, callbacks__evaluation=None)
    assert run(config, run_dir) == 0
    return [record["loss"] for record in tiny.metrics(run_dir)]


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_losses_are_the_recorded_ones(recipe: str, tmp_path: Path) -> None:
    recorded = json.loads(FILE.read_text())[recipe]
    assert len(recorded) == 20
    assert losses(recipe, tmp_path) == pytest.approx(recorded, rel=2e-3)


def test_every_recipe_is_recorded() -> None:
    recipes = {path.stem for path in (Path(__file__).parents[2] / "conf" / "recipe").glob("*.yaml")}
    assert set(json.loads(FILE.read_text())) == recipes == set(tiny.RECIPES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {recipe: losses(recipe, Path(folder, recipe)) for recipe in tiny.RECIPES}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
