"""What makes two runs different experiments, and what they are called then."""

from typing import Any

import pytest

from distill.report.settings import differing, identity, names, recipe, text
from tests import tiny


def config(recipe: str = "opd", **changes: Any) -> dict[str, Any]:
    return tiny.config(recipe, **changes)


def test_seed_name_and_logging_make_no_other_experiment() -> None:
    other = config(seed=5, run_name="mine", logger__group="g", logger__tags=["a"], resume="auto")
    assert identity(other) == identity(config())
    assert identity(config(optimizer__lr=2e-2)) != identity(config())


def test_names_say_what_differs() -> None:
    assert names([config(), config(optimizer__lr=1e-3)]) == ["lr 0.01", "lr 1e-3"]
    assert names([config(), config(data__batch_size=24)]) == ["data batch_size 12", "data batch_size 24"]
    assert names([config()]) == [""]
    assert names([]) == []


def test_a_recipe_stands_for_its_rollout_teacher_and_objective() -> None:
    assert names([config("opd"), config("sft"), config("offline_kd")]) == [
        "recipe opd",
        "recipe sft",
        "recipe offline_kd",
    ]
    assert names([config("opd"), config("opd", objective__divergence="jsd"), config("sft", optimizer__lr=1e-3)]) == [
        "recipe opd · divergence reverse_kl · lr 0.01",
        "recipe opd · divergence jsd · lr 0.01",
        "recipe sft · divergence – · lr 1e-3",
    ]


def test_models_are_named_by_the_end_of_their_path_or_by_their_size() -> None:
    path = config(student__config=None, student__path="/a/very/long/path/to/qwen-1.5b", student__tokenizer=None)
    assert names([path, config()]) == ["student qwen-1.5b", "student llama 2×8"]
    wide = config()
    wide["student"]["config"] = tiny.llama(8) | {"intermediate_size": 64}
    assert names([config(), wide]) == ["student intermediate_size 16", "student intermediate_size 64"]


def test_long_values_and_many_settings_are_cut() -> None:
    many = config(
        optimizer__lr=0.000123456789, optimizer__eps=1e-6, data__digits=3, data__eval_size=9, trainer__max_steps=9
    )
    found = names([config(), many])
    assert found[1].count("·") == 4
    assert found[1].endswith("+ 1 more")
    assert names([config(), config(optimizer__lr=0.000123456789)])[1] == "lr 1.235e-4"
    assert len(names([config(), config(data__prompt="{a}+{b}=" * 20)])[1]) < 40


def test_differing_shows_every_value_exactly() -> None:
    old = config()
    del old["optimizer"]["eps"]
    assert differing([config(), old, config(optimizer__lr=0.123456789)]) == {
        "optimizer.lr": ["0.01", "0.01", "0.123456789"],
        "optimizer.eps": ["1e-8", "–", "1e-8"],
    }
    assert differing([config(), config(seed=3)]) == {}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((1e-3, "1e-3"), (2.5e-5, "2.5e-5"), (0.5, "0.5"), (1e30, "1e30"), (0.0, "0"), (100.0, "100")),
        *((True, "true"), (None, "null"), ([0.9, 1], "[0.9, 1]"), ("a b", "a b"), (float("inf"), "Infinity")),
    ],
)
def test_values_as_one_types_them(value: Any, shown: str) -> None:
    assert text(value) == shown


def test_a_configuration_without_kinds_has_no_recipe() -> None:
    assert [recipe(config(name)) for name in tiny.RECIPES] == list(tiny.RECIPES)
    copied = {f"{name}__path": "x" for name in ("student", "teacher")} | {"teacher__prompt": "{answer}"}
    assert recipe(config("opd", **copied)) == "self_distillation"
    assert recipe(config("opd", **copied | {"teacher__path": "y"})) == "opd"
    assert recipe(config("online_kd", **tiny.ADAPTED)) == "online_lora"
    assert recipe({}) is None
    assert recipe({"rollout": "on_policy", "teacher": {"kind": "none"}}) is None


def test_a_divergence_without_weight_is_no_setting() -> None:
    assert identity(config("sft", objective__divergence="jsd", objective__beta=0.3)) == identity(config("sft"))
    assert identity(config("sft", objective__chunk_size=7)) != identity(config("sft"))
    assert differing([config("opd"), config("sft")])["objective.divergence"] == ["reverse_kl", "–"]
