"""docs/recipes.md says what the tests run and what the configuration refuses, and leaves nothing out."""

from __future__ import annotations

from pathlib import Path

from tests import recipe_table

CONF = Path(__file__).parents[2] / "conf" / "recipe"


def test_the_table_is_what_the_tests_say() -> None:
    _, table, _ = recipe_table.document(recipe_table.DOC.read_text(encoding="utf-8"))
    assert table == recipe_table.render(), "python -m tests.recipe_table writes it anew"


def test_nothing_is_untested() -> None:
    assert "untested" not in recipe_table.render()


def test_what_is_tested_has_a_row() -> None:
    """A name that no row has would be of nothing."""
    rows = {(recipe, task) for recipe in recipe_table.RECIPES for task in recipe_table.TASKS}
    assert set(recipe_table.tested()) <= rows


def test_every_recipe_has_a_row_and_a_section() -> None:
    rows = {name.partition(",")[0] for name in recipe_table.RECIPES}
    text = recipe_table.DOC.read_text(encoding="utf-8")
    for path in CONF.glob("*.yaml"):
        assert path.stem in rows
        assert f"\n## {path.stem}\n" in text
