"""Every YAML file under ``conf/``: each option composes with the recipe it fits and passes the schema."""

from pathlib import Path

import pytest

from distill.commands import compose
from distill.config import checks
from distill.config.validate import ConfigError

CONF = Path(__file__).parents[3] / "conf"
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
GROUPS = {"recipe", "task", "data", "student", "teacher", "rollout", "objective", "optimizer", "trainer", "callbacks",
          "logger", "experiment", "sweep"}  # fmt: skip
IMAGES = ["task=image_classification", "recipe=sft"]
MASKS = ["task=semantic_segmentation", "recipe=sft"]
WITH = {
    ("objective", "cross_entropy"): ["recipe=sft"],
    ("teacher", "none"): ["recipe=sft"],
    ("teacher", "multi"): ["teacher.members={one: {path: x}, two: {path: y}}"],
    ("teacher", "self"): ["teacher.prompt='{answer} {prompt}'"],
    ("teacher", "cotrained"): ["recipe=online_kd"],
    ("recipe", "multi_teacher"): ["teacher.members={one: {path: x}, two: {path: y}}"],
    ("data", "text"): ["data.path=x"],
    ("data", "reasoning_gym"): ["data.task=x"],
    ("data", "mixture"): ["data.parts={sums: {weight: 3}, file: {source: text, path: x}}"],
    ("student", "path"): ["student.path=x"],
    ("recipe", "subnetwork"): ["callbacks.update_mask.path=x"],
    ("experiment", "sparsity_subnetwork"): ["callbacks.update_mask.path=x"],
    ("teacher", "cached"): ["recipe=offline_kd"],
    ("task", "image_classification"): ["recipe=sft"],
    **{("data", name): IMAGES for name in ("digits", "fashion_mnist")},
    **{("data", name): [*IMAGES, "data.path=x", "data.image_size=8"] for name in ("image_folder", "image_dataset")},
    ("student", "mlp"): IMAGES,
    ("task", "semantic_segmentation"): ["recipe=sft"],
    **{(group, name): MASKS for group, name in (("data", "scenes"), ("student", "segformer_tiny"))},
    **{
        ("data", name): [*MASKS, "data.path=x", "data.image_size=8", "data.classes=2"]
        for name in ("mask_folder", "mask_dataset")
    },
    ("recipe", "kd_variance"): ["teacher.path=x"],
    **{("student", f"{name}_tiny"): IMAGES for name in ("vit", "resnet", "convnext", "mobilenet")},
}
"""What else an option asks for."""


def check(*overrides: str, config_dir: Path | None = None) -> compose.Composed:
    folder = None if config_dir is None else str(config_dir)
    [composed] = compose.check("train", overrides, own_check=checks.run, config_dir=folder)
    return composed


def test_there_are_options_in_every_group() -> None:
    assert {group for group, _ in OPTIONS} == GROUPS
    assert len(OPTIONS) > 30


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_validates(group: str, option: str) -> None:
    if group == "sweep":
        words = compose.sweep_words("train", [f"sweep={option}"], None)
        assert len(compose.check("train", words, multirun=True)) > 1
        return
    composed = check(f"{group}={option}", *WITH.get((group, option), []))
    assert composed.choices[group] == option


@pytest.mark.parametrize("command", [path.stem for path in CONF.glob("*.yaml") if path.stem != "settings"])
def test_every_command_has_a_schema(command: str) -> None:
    assert command in compose.SCHEMAS


def test_the_default_is_on_policy_distillation_of_the_embedded_models() -> None:
    composed = check()
    assert composed.choices["recipe"] == "opd"
    assert composed.config["rollout"]["kind"] == "on_policy"
    assert composed.config["objective"]["divergence"] == "reverse_kl"
    assert (
        composed.config["teacher"] | {"kind": "frozen", "path": "package://distill/assets/teacher"}
        == composed.config["teacher"]
    )
    assert composed.config["student"]["path"] == "package://distill/assets/student"
    assert composed.config["trainer"]["accelerator"] == "cpu"


@pytest.mark.parametrize(
    ("recipe", "rollout", "teacher", "weights"),
    [
        ("opd", "on_policy", "frozen", (0.0, 1.0)),
        ("sft", "dataset", "none", (1.0, 0.0)),
        ("offline_kd", "dataset", "frozen", (0.5, 0.5)),
        ("self_distillation", "on_policy", "frozen", (0.0, 1.0)),
        ("online_kd", "dataset", "cotrained", (1.0, 1.0)),
        ("online_adm", "dataset", "cotrained", (1.0, 1.0)),
        ("online_lora", "dataset", "cotrained", (0.0, 1.0)),
    ],
)
def test_recipes(recipe: str, rollout: str, teacher: str, weights: tuple[float, float]) -> None:
    config = check(f"recipe={recipe}").config
    assert config["run_name"] == recipe
    assert config["rollout"]["kind"] == rollout
    assert config["teacher"]["kind"] == teacher
    assert (config["objective"]["label_weight"], config["objective"]["logit_weight"]) == weights


def test_self_distillation_asks_the_students_start_or_the_student_itself() -> None:
    held = check("recipe=self_distillation", "student=path", "student.path=x").config["teacher"]
    assert (held["kind"], held["path"], held["prompt"]) == ("frozen", "x", "{answer} {prompt}")
    live = check("recipe=self_distillation", "student=path", "student.path=x", "teacher=self").config["teacher"]
    assert (live["kind"], live["path"], live["prompt"]) == ("self", None, "{answer} {prompt}")


@pytest.mark.parametrize("recipe", ["opd", "sft", "offline_kd"])
def test_a_subnetwork_goes_with_every_recipe(recipe: str) -> None:
    alone = check(f"recipe={recipe}").config
    for word in (f"[{recipe},subnetwork]", f"[subnetwork,{recipe}]", "subnetwork")[: 3 if recipe == "opd" else 2]:
        config = check(f"recipe={word}", "callbacks.update_mask.path=x").config
        assert config["callbacks"].pop("update_mask") == {"path": "x"}
        assert config | {"run_name": recipe} == alone | {"callbacks": config["callbacks"]}
        assert config["callbacks"] | {"update_mask": None} == alone["callbacks"]
    assert check(f"recipe={recipe}", "callbacks.update_mask.path=x").config["callbacks"]["update_mask"] == {"path": "x"}


def test_each_of_several_options_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"`recipe` must be one of .* \(did you mean 'sft'\?\), but is 'sfft'"):
        check("recipe=[sfft,subnetwork]", "callbacks.update_mask.path=x")


def test_two_stages_are_the_recipes_and_the_command_lines() -> None:
    config = check("recipe=two_stage", "stages.synthetic.data.size=5", "stages.annotated.data.limit=7").config
    assert list(config["stages"]) == ["synthetic", "annotated"], "in this order"
    assert config["stages"] == {"synthetic": {"data": {"size": 5}}, "annotated": {"data": {"limit": 7}}}
    assert len(check("recipe=two_stage", "stages.last.seed=1").config["stages"]) == 3


def test_offline_kd_keeps_its_weights_with_another_divergence() -> None:
    objective = check("recipe=offline_kd", "objective=jsd").config["objective"]
    assert (objective["divergence"], objective["label_weight"], objective["logit_weight"]) == ("jsd", 0.5, 0.5)


def test_offline_kd_and_cross_entropy_alone_contradict() -> None:
    with pytest.raises(ConfigError, match=r"`objective.logit_weight` must be 0 with objective=cross_entropy"):
        check("recipe=offline_kd", "objective=cross_entropy")


@pytest.mark.parametrize("divergence", [option for group, option in OPTIONS if group == "objective"])
def test_every_divergence_has_an_option_of_its_name(divergence: str) -> None:
    objective = check(f"objective={divergence}", *WITH.get(("objective", divergence), [])).config["objective"]
    assert divergence == "cross_entropy" or objective["divergence"] == divergence


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """A user's folder with one experiment that picks a recipe, another objective and a value."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n"
        "  - override /recipe: offline_kd\n"
        "  - override /objective: jsd\n"
        "objective:\n  label_weight: 0.25\n"
        "optimizer:\n  lr: 0.125\n"
    )
    return tmp_path


def test_an_experiment_outranks_the_recipe(experiments: Path) -> None:
    composed = check("experiment=mine", config_dir=experiments)
    objective = composed.config["objective"]
    assert composed.choices["recipe"] == "offline_kd"
    assert composed.config["rollout"]["kind"] == "dataset", "of the recipe the experiment picked"
    assert (objective["divergence"], objective["label_weight"], objective["logit_weight"]) == ("jsd", 0.25, 0.5)
    assert composed.config["optimizer"]["lr"] == 0.125, "and the settings of the embedded student"


def test_the_command_line_outranks_both(experiments: Path) -> None:
    words = ("experiment=mine", "recipe=opd", "objective=forward_kl", "objective.label_weight=0", "optimizer.lr=0.5")
    composed = check(*words, config_dir=experiments)
    assert composed.choices["recipe"] == "opd"
    assert composed.config["rollout"]["kind"] == "on_policy"
    assert composed.config["objective"]["divergence"] == "forward_kl"
    assert composed.config["optimizer"]["lr"] == 0.5


def test_another_student_does_not_inherit_the_embedded_ones_settings() -> None:
    assert check().config["optimizer"]["lr"] != 1e-5
    assert check("student=path", "student.path=x").config["optimizer"]["lr"] == 1e-5


def test_callbacks_can_be_off_and_single_ones_on() -> None:
    off = check("callbacks=none").config["callbacks"]
    assert [off[name] for name in ("sparsity", "evaluation", "checkpoint", "update_mask")] == [None] * 4
    one = check("callbacks=none", "callbacks.sparsity.every_n_steps=5").config["callbacks"]
    assert one["sparsity"] == {"every_n_steps": 5, "origin": None, "since_last": True}
    assert check("callbacks.sparsity=null").config["callbacks"]["sparsity"] is None


def test_gradient_variance_is_off_until_one_of_its_keys_is_set() -> None:
    assert check("callbacks=default").config["callbacks"]["gradient_variance"] is None
    for recipe in ("opd", "offline_kd", "speculative_kd"):
        found = check(f"recipe={recipe}", "callbacks.gradient_variance.every_n_steps=9").config["callbacks"]
        assert found["gradient_variance"] == {"every_n_steps": 9, "blocks": 8, "sketch": 65_521, "horizon": None}


def test_extrapolation_is_one_override_beside_any_recipe() -> None:
    assert check("callbacks=default").config["callbacks"]["extrapolation"] is None
    for recipe in ("opd", "sft", "speculative_kd"):
        found = check(f"recipe={recipe}", "callbacks=effopd").config["callbacks"]
        assert found["extrapolation"] == {"candidates": 5, "examples": 50}
        assert found["sparsity"] is not None
    assert check("callbacks.extrapolation.examples=9").config["callbacks"]["extrapolation"]["candidates"] == 5
