"""What images cannot be combined with, each in one line that names key, value and what to set instead."""

from __future__ import annotations

import pytest

from distill.commands import compose
from distill.config import checks
from distill.config.validate import ConfigError

IMAGES = ("task=image_classification", "recipe=sft")


def problems(*words: str, command: str = "train") -> list[str]:
    own = () if any(word.startswith("task=") for word in words) else IMAGES[:1]
    try:
        compose.check(command, [*own, *IMAGES[1:], *words], **({"own_check": checks.run} if command == "train" else {}))
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_the_task_brings_a_student_and_data_that_fit() -> None:
    assert problems() == []
    assert (
        problems("student=resnet_tiny", "data.pad_crop=1", "data.flip=true", "data.mean=[0.3]", "data.std=[0.2]") == []
    )
    assert problems("recipe=offline_kd", "teacher.path=x", "objective=jsd") == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["recipe=opd"], "`task.name` must be 'causal_lm' with rollout.kind 'on_policy'"),
        (["recipe=speculative_kd"], "`task.name` must be 'causal_lm' with rollout.kind 'speculative'"),
        (
            ["recipe=offline_kd", "teacher=cached", "teacher.cache=x"],
            "`task.name` must be 'causal_lm' with teacher.kind 'cached'",
        ),
        (["data=arithmetic"], "`data.source` must be one of digits, fashion_mnist, image_folder, image_dataset with"),
        (["eval_data.source=arithmetic"], "`eval_data.source` must be one of digits"),
        (["data.max_length=7"], "`data.max_length` must be 2048 with task.name 'image_classification'"),
        (["data.chat_template=true"], "`data.chat_template` must be false with task.name"),
        (["student.tokenizer=x"], "`student.tokenizer` must be null with task.name"),
        (["student.layers=[0]"], "`student.layers` must be null with task.name"),
        (["student.new_head=true"], "`student.new_head` must be false without student.path: what is drawn"),
        (["student.lora.r=2"], "`student.lora` must be null with task.name"),
        (["callbacks.gradient_variance.every_n_steps=2"], "`callbacks.gradient_variance` must be null without a teac"),
        (
            ["recipe=self_distillation"],
            "`task.name` must be 'causal_lm' with rollout.kind 'on_policy', which gen",
        ),
        (["teacher=self"], "`task.name` must be 'causal_lm' with teacher.kind 'self'"),
        (["callbacks=effopd"], "`callbacks.extrapolation` must be null with task.name"),
        (
            ["recipe=offline_kd", "teacher.path=x", "teacher.prompt='{a}'"],
            "`teacher.prompt` must be null with task.name",
        ),
        (["data=image_folder", "data.path=x"], "`data.image_size` must be given with data.source 'image_folder'"),
        (["data=image_folder", "data.image_size=4"], "`data.path` must be given with data.source 'image_folder'"),
        (["data.label_column=y"], "`data.label_column` must be label unless data.source is 'image_dataset' or"),
        (["data.path=x"], "`data.path` must be null unless data.source is"),
        (["data.mean=[0.5]"], "`data.std` must be given: mean and std belong together"),
        (["data.mean=[1,2]", "data.std=[1]"], "`data.mean` must be one number, or one for each of 1 channels"),
        (["data.mean=[1]", "data.std=[0]"], "`data.std` must be above 0"),
        (["recipe=offline_kd"], "`teacher.path` must be a model of images with task.name 'image_classification'"),
        (["recipe=online_kd"], "`teacher.path` must be a model of images with task.name 'image_classification'"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], says: str) -> None:
    assert any(says in problem for problem in problems(*words)), problems(*words)


MASKS = ("task=semantic_segmentation",)


def test_segmentation_brings_a_student_and_data_that_fit() -> None:
    assert problems(*MASKS) == []
    assert problems(*MASKS, "recipe=offline_kd", "teacher.path=x", "data.pad_crop=4", "data.flip=true") == []
    assert problems(*MASKS, "data=mask_folder", "data.path=x", "data.image_size=8", "data.classes=[a,b]") == []
    assert problems(*MASKS, "data=mask_dataset", "data.path=x", "data.image_size=8", "data.classes=5") == []
    assert problems(*MASKS, "student.frozen_batch_norm=true", "data.mean=[0,0,0]", "data.std=[1,1,1]") == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["recipe=opd"], "`task.name` must be 'causal_lm' with rollout.kind 'on_policy'"),
        (["recipe=kd_variance", "teacher.path=x"], "must be 'image_classification' with variance_reduction"),
        (
            ["recipe=offline_kd", "teacher=cached", "teacher.cache=x"],
            "`task.name` must be 'causal_lm' with teacher.kind 'cached'",
        ),
        (["data=digits"], "`data.source` must be one of scenes, mask_folder, mask_dataset with task.name 'semantic"),
        (["student.lora.r=2"], "`student.lora` must be null with task.name 'semantic_segmentation'"),
        (["data=mask_folder", "data.path=x", "data.image_size=4"], "`data.classes` must be given with data.source"),
        (["data.classes=4"], "`data.classes` must be null unless data.source is 'mask_folder' or 'mask_dataset'"),
        (["data=mask_dataset", "data.classes=4", "data.image_size=4"], "`data.path` must be given with data.source"),
        (["data.mean=[1,2]", "data.std=[1]"], "`data.mean` must be one number, or one for each of 3 channels"),
    ],
)
def test_what_makes_no_sense_of_pixels_is_refused(words: list[str], says: str) -> None:
    assert any(says in problem for problem in problems(*MASKS, *words)), problems(*MASKS, *words)


@pytest.mark.parametrize("word", ["data.image_size=4", "data.flip=true", "data.mean=[1]", "data.channels=1"])
def test_text_has_no_size(word: str) -> None:
    with pytest.raises(ConfigError, match="which has no images"):
        compose.check("train", [word], own_check=checks.run)


def test_text_has_no_new_head() -> None:
    with pytest.raises(ConfigError, match=r"`student.new_head` must be false unless task.name is 'image_class"):
        compose.check("train", ["student.new_head=true"], own_check=checks.run)


def test_text_is_not_read_from_images() -> None:
    with pytest.raises(ConfigError, match=r"`data.source` must be a source of text with task.name 'causal_lm'"):
        compose.check("train", ["data=digits"], own_check=checks.run)


@pytest.mark.parametrize("command", ["plan", "cache"])
def test_commands_for_text_say_so(command: str) -> None:
    assert any(f"must be 'causal_lm' for `distill {command}`" in problem for problem in problems(command=command))
