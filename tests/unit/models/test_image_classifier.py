"""Any image backbone as states and a head: what both say together is what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from distill.data.image_files import pixels_of
from distill.data.images import channelled, resized
from distill.errors import UserError
from distill.images import ImageRow, collate
from distill.models import build_images, image_processor
from distill.models.build_images import Pictures, build
from distill.models.export import save
from distill.models.head import LogitHead
from distill.models.image_classifier import ImageClassifier, Scale
from tests import tiny

CLASSES = tuple("abcdefghij")
DIGITS = Pictures((1, 8, 8), CLASSES)
DINO = {**tiny.VIT, "model_type": "dinov2"}
SWIN = {"model_type": "swin", "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
BACKBONES = {config["model_type"]: config for config in (tiny.VIT, tiny.RESNET, tiny.CONVNEXT, tiny.MOBILENET, SWIN)}


def model(config: dict[str, Any], pictures: Pictures = DIGITS, **spec: Any) -> ImageClassifier:
    return build({"config": config, **spec}, seed=0, key="student", pictures=pictures)


def some(count: int = 3, shape: tuple[int, int, int] = (1, 8, 8)) -> torch.Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BACKBONES)
def test_states_and_head_say_what_the_model_says(name: str) -> None:
    found = model(BACKBONES[name])
    assert isinstance(found.head, LogitHead)
    found.model.eval()
    states = found.hidden(some())
    expected = found.model(pixel_values=found.scale(some())).logits
    assert states.ndim == 2
    torch.testing.assert_close(found.head(states), expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_weight_learns(name: str) -> None:
    """Above all the head's: its own output is thrown away on the way to the states."""
    found = model(BACKBONES[name])
    found.model.train()
    found.head(found.hidden(some(8))).square().sum().backward()
    without = [name for name, parameter in found.model.named_parameters() if parameter.grad is None]
    assert [name for name in without if "mask_token" not in name] == []


def test_a_model_of_two_heads_is_taken_as_a_whole() -> None:
    """Fresh, and without biases: on a black image each of its heads would say the same as both."""
    config = {"model_type": "swiftformer", "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 8], "mlp_ratio": 2}
    found = model(config, Pictures((3, 64, 64), CLASSES))
    found.model.eval()
    images = some(3, (3, 64, 64))
    expected = found.model(pixel_values=found.scale(images)).logits
    assert expected.detach().std() > 0
    torch.testing.assert_close(found.head(found.hidden(images)), expected, rtol=1e-4, atol=0)


def test_dropout_before_the_head_counts_in_training() -> None:
    found = model({**tiny.MOBILENET, "classifier_dropout_prob": 0.9})
    found.model.eval()
    whole = found.hidden(some())
    found.model.train()
    assert float((found.hidden(some()) == 0).float().mean()) > float((whole == 0).float().mean()) + 0.3


def test_a_batch_has_one_target_per_image() -> None:
    rows = [ImageRow(number, pixels, number % 2) for number, pixels in enumerate(some(4))]
    signal = model(tiny.VIT).signal(collate(rows, window_positions=4))
    assert signal.head(signal.hidden).shape == (4, 10)


def test_image_size_channels_and_classes_are_the_datas() -> None:
    found = model(tiny.RESNET, Pictures((3, 16, 16), ("cat", "dog")))
    config = found.model.config
    assert (config.num_channels, config.image_size, config.num_labels) == (3, 16, 2)
    assert config.id2label == {0: "cat", 1: "dog"}
    assert config.label2id == {"cat": 0, "dog": 1}
    assert found.classes == ("cat", "dog")


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(7)
    first = model(tiny.VIT)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn)
    for ours, theirs in zip(first.model.parameters(), model(tiny.VIT).model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_saved_model_comes_back_with_its_scale(tmp_path: Path) -> None:
    made = model(tiny.RESNET, Pictures((1, 8, 8), CLASSES, Scale((0.25,), (0.5,))))
    save(made, tmp_path / "model")
    again = build({"path": str(tmp_path / "model")}, seed=1, key="teacher", pictures=DIGITS)
    assert again.scale == Scale((0.25,), (0.5,))
    assert (again.shape, again.classes) == ((1, 8, 8), CLASSES)
    alone = build({"path": str(tmp_path / "model")}, seed=1, key="checkpoint")
    for found in (again, alone):
        found.model.eval(), made.model.eval()
        torch.testing.assert_close(found.hidden(some()), made.hidden(some()))


def test_other_programs_read_a_saved_model(tmp_path: Path) -> None:
    save(model(tiny.VIT), tmp_path / "model")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "model").config.id2label[3] == "d"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert list(processor.image_mean) == [0.5]


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 3), ("L", 1)])
@pytest.mark.parametrize("size", [(20, 60), (33, 17), (16, 16)])
def test_a_saved_processor_does_to_an_image_what_training_did(
    tmp_path: Path, mode: str, channels: int, size: tuple[int, int]
) -> None:
    made = model(tiny.VIT, Pictures((channels, 8, 8), CLASSES, Scale((0.4,) * channels, (0.2,) * channels)))
    save(made, tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    rows = torch.linspace(0, 255, size[0] * size[1]).reshape(size).to(torch.uint8).numpy()
    image = Image.fromarray(rows).convert(mode)
    ours = made.scale(resized(channelled(pixels_of(image), channels), 8))
    theirs = processor(image, return_tensors="pt").pixel_values[0]
    # Pillow rounds to bytes after scaling.
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("spec", "key", "says"),
    [
        ({"config": {"hidden_size": 8}}, "student.config", "a `model_type`"),
        ({"config": {"model_type": "nothing"}}, "student.config", "of an image classifier"),
        ({"config": {"model_type": "llama"}}, "student.config", "of an image classifier"),
        ({"config": {**tiny.RESNET, "layer_type": "odd"}}, "student.config", "of an image classifier"),
        ({"config": {**tiny.VIT, "num_channels": 3}}, "student.config.num_channels", "left out: the data says 1"),
        ({"config": {**tiny.VIT, "patch_size": 16}}, "student.config", "reads images of 1×8×8"),
        ({"path": "package://distill/assets/student"}, "student.path", "of an image classifier"),
    ],
)
def test_what_cannot_be_built_is_named(spec: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        build(spec, seed=0, key="student", pictures=DIGITS)
    assert error.value.key == key
    assert says in error.value.allowed
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pictures", "key", "says"),
    [
        (Pictures((1, 8, 8), CLASSES[:4]), "teacher.path", "it has 10, the data 4"),
        (Pictures((1, 8, 8), tuple("abcdefghix")), "teacher.path", "class 9 is 'j' for the model, 'x' in the data"),
        (Pictures((3, 8, 8), CLASSES), "data.channels", "1, which"),
    ],
)
def test_a_model_has_to_fit_the_data(tmp_path: Path, pictures: Pictures, key: str, says: str) -> None:
    save(model(tiny.VIT), tmp_path / "model")
    with pytest.raises(UserError, match=key) as error:
        build({"path": str(tmp_path / "model")}, seed=0, key="teacher", pictures=pictures)
    assert says in error.value.allowed


@pytest.mark.parametrize("config", [{**tiny.VIT, "patch_size": 4}, {**DINO, "patch_size": 4}], ids=["vit", "dinov2"])
def test_position_embeddings_are_interpolated(tmp_path: Path, config: dict[str, Any]) -> None:
    """As transformers does it at every step where it is asked to, and once only: the saved student needs no asking."""
    small = model({**config, "initializer_range": 1.0}, Pictures((1, 16, 16), CLASSES))
    save(small, tmp_path / "model")
    spec = {"path": str(tmp_path / "model")}
    found = build(spec, seed=0, key="student", pictures=Pictures((1, 32, 32), CLASSES))
    assert (found.shape, found.model.config.image_size) == ((1, 32, 32), 32)
    images = found.scale(some(2, (1, 32, 32)))
    found.model.eval(), small.model.eval()
    asked = {"interpolate_pos_encoding": True} if config["model_type"] == "vit" else {}
    theirs = small.model(pixel_values=images, **asked).logits
    torch.testing.assert_close(found.model(pixel_values=images).logits, theirs, rtol=1e-4, atol=1e-4)
    save(found, tmp_path / "large")
    again = build({"path": str(tmp_path / "large")}, seed=0, key="checkpoint")
    assert again.shape == (1, 32, 32)


def test_what_depends_on_the_size_otherwise_is_refused(tmp_path: Path) -> None:
    beit = {**tiny.VIT, "model_type": "beit", "use_relative_position_bias": True}
    save(model(beit), tmp_path / "model")
    with pytest.raises(UserError, match=r"`data\.image_size` must be 8, which .* reads: its .* is made for that size"):
        build({"path": str(tmp_path / "model")}, seed=0, key="student", pictures=Pictures((1, 16, 16), CLASSES))


@pytest.mark.parametrize("config", [tiny.RESNET, tiny.CONVNEXT], ids=["resnet", "convnext"])
def test_a_backbone_without_positions_reads_any_size(tmp_path: Path, config: dict[str, Any]) -> None:
    save(model(config), tmp_path / "model")
    found = build({"path": str(tmp_path / "model")}, seed=0, key="teacher", pictures=Pictures((1, 16, 16), CLASSES))
    assert (found.shape, found.model.config.image_size) == ((1, 16, 16), 16)
    assert found.head(found.hidden(some(2, (1, 16, 16)))).shape == (2, 10)


@pytest.mark.parametrize("config", [tiny.VIT, tiny.RESNET, tiny.MOBILENET], ids=["vit", "resnet", "mobilenet"])
@pytest.mark.parametrize("classes", [("cat", "dog"), tuple("jihgfedcba")], ids=["fewer", "others"])
def test_a_new_head_is_drawn_for_the_datas_classes(
    tmp_path: Path, config: dict[str, Any], classes: tuple[str, ...]
) -> None:
    source = model(config)
    save(source, tmp_path / "model")
    spec, pictures = {"path": str(tmp_path / "model"), "new_head": False}, Pictures((1, 8, 8), classes)
    with pytest.raises(UserError, match=r"`student.path` must be .*; `student.new_head=true` draws one for those of"):
        build(spec, seed=0, key="student", pictures=pictures)
    first, same, other = (
        build(spec | {"new_head": True}, seed=seed, key="student", pictures=pictures) for seed in (3, 3, 4)
    )
    assert first.classes == classes
    before, after = source.model.state_dict(), first.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed, "the old head is of other classes, also where they are as many"
    # The bias of as many classes is 0 in both.
    assert changed <= {name for name, _ in first.model.named_parameters() if name.startswith("classifier")}
    weight = next(name for name in changed if name.endswith("weight"))
    assert torch.equal(after[weight], same.model.state_dict()[weight])
    assert not torch.equal(after[weight], other.model.state_dict()[weight])


def test_a_backbone_without_a_head_gets_one(tmp_path: Path) -> None:
    model(tiny.VIT).model.vit.save_pretrained(tmp_path / "backbone")
    spec = {"path": str(tmp_path / "backbone"), "new_head": False}
    with pytest.raises(UserError, match=r"`student.path` must be a model with a head for its classes \(`student"):
        build(spec, seed=0, key="student", pictures=DIGITS)
    found = build(spec | {"new_head": True}, seed=0, key="student", pictures=DIGITS)
    assert found.head(found.hidden(some(2))).shape == (2, 10)


def test_a_teacher_has_to_know_the_classes(tmp_path: Path) -> None:
    save(model(tiny.VIT), tmp_path / "model")
    with pytest.raises(UserError, match=r"`teacher.path` must be a model of the data's classes \(it has 10, .* 2\)"):
        build({"path": str(tmp_path / "model")}, seed=0, key="teacher", pictures=Pictures((1, 8, 8), ("cat", "dog")))


def test_a_folder_of_broken_weights_is_named(tmp_path: Path) -> None:
    save(model(tiny.VIT), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="a complete safetensors file"):
        build({"path": str(tmp_path / "model")}, seed=0, key="student", pictures=DIGITS)


def test_a_processor_that_says_nothing_of_use_is_no_scale(tmp_path: Path) -> None:
    save(model(tiny.VIT), tmp_path / "model")
    for content in ("{", "{}", json.dumps({"image_mean": [0.1, 0.2], "image_std": [1, 1]})):
        (tmp_path / "model" / "preprocessor_config.json").write_text(content)
        found = build({"path": str(tmp_path / "model")}, seed=0, key="student", pictures=DIGITS)
        assert found.scale == Scale((0.5,), (0.5,))


def test_a_processor_that_does_not_normalise_is_obeyed(tmp_path: Path) -> None:
    save(model(tiny.VIT), tmp_path / "model")
    settings = {"do_normalize": False, "image_mean": [0.4], "image_std": [0.2], "rescale_factor": 0.00392156862745098}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    found = build({"path": str(tmp_path / "model")}, seed=0, key="student", pictures=DIGITS)
    assert found.scale == Scale((0.0,), (1.0,))


@pytest.mark.parametrize("odd", [{"do_flip_channel_order": True}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_a_processor_that_does_something_else_is_refused(tmp_path: Path, odd: dict[str, Any]) -> None:
    save(model(tiny.VIT), tmp_path / "model")
    settings = {"image_mean": [0.4], "image_std": [0.2], **odd}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"`teacher.path` must be a model that reads RGB in \[0, 1\]"):
        build({"path": str(tmp_path / "model")}, seed=0, key="teacher", pictures=DIGITS)


def test_a_processor_on_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model(tiny.VIT), tmp_path / "model")
    asked = []

    def found(location: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        asked.append((location, options["revision"]))
        return {"image_mean": [0.4], "image_std": [0.2]}, {}

    monkeypatch.setattr(image_processor.ImageProcessingMixin, "get_image_processor_dict", found)
    monkeypatch.setattr(build_images, "locate", lambda path, key: path)
    spec = {"path": str(tmp_path / "model"), "revision": "main"}
    assert build(spec, seed=0, key="teacher", pictures=DIGITS).scale == Scale((0.4,), (0.2,))
    assert asked == [(str(tmp_path / "model"), "main")], "a text, as a hub id is, and not a folder"


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, saving = model(tiny.VIT), model(tiny.VIT, gradient_checkpointing=True)
    for found in (plain, saving):
        found.model.train()
        found.head(found.hidden(some())).square().sum().backward()
    for ours, theirs in zip(plain.model.parameters(), saving.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
