"""Labelled images: what each source reads, how it is split, and in one line what is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.config.schema import Data
from distill.data import images
from distill.data.image_files import pixels_of
from distill.data.image_sources import FASHION
from distill.data.images import HELD_OUT, channelled, resized
from distill.errors import UserError
from tests import image_files


def config(source: str, **changes: Any) -> dict[str, Any]:
    return Data(source=source, **changes).model_dump()  # type: ignore[arg-type]


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Seven training and three test images: image i is of class i, and its pixels are all i."""
    for part, count in (("train", 7), ("t10k", 3)):
        numbers = np.arange(count)
        image_files.idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.ones((count, 4, 5)) * numbers[:, None, None])
        image_files.idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", numbers)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_files.folder(tmp_path / "folder")


def test_digits_are_split_the_same_way_every_time() -> None:
    train, held_out = images.build(config("digits"))
    assert (len(train), len(held_out)) == (1438, 359)
    assert len(held_out) == 1797 // HELD_OUT
    ids = {sample.id for sample in (train[index] for index in range(len(train)))}
    others = {held_out[index].id for index in range(len(held_out))}
    assert ids | others == set(range(1797))
    assert ids.isdisjoint(others)
    again, _ = images.build(config("digits", eval_size=1))
    assert again.chosen == train.chosen, "how many are looked at moves none"
    assert train.shape == (1, 8, 8)
    assert train.classes == tuple("0123456789")
    assert float(train[0].pixels.min()) >= 0
    assert float(train[0].pixels.max()) <= 1
    assert {held_out[index].label for index in range(60)} == set(range(10))


def test_smaller_parts_lie_in_larger_ones() -> None:
    whole, held_out = images.build(config("digits"))
    half, same = images.build(config("digits", fraction=0.5))
    few, _ = images.build(config("digits", limit=10))
    assert len(half) == 719
    assert half.chosen[:10] == few.chosen
    assert set(half.chosen) < set(whole.chosen)
    assert same.chosen == held_out.chosen
    with pytest.raises(UserError, match=r"`data.limit` must be at most 1438"):
        images.build(config("digits", limit=2000))


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'distill\[vision\]'"):
        images.build(config("digits"))


def test_fashion_mnist(fashion: Path) -> None:
    train, held_out = images.build(config("fashion_mnist", path=str(fashion)))
    assert (len(train), len(held_out), train.classes) == (7, 3, FASHION)
    assert train[3].label == 3
    assert train.shape == (1, 4, 5)
    torch.testing.assert_close(train[3].pixels, torch.full((1, 4, 5), 3 / 255))
    assert sorted(held_out[index].label for index in range(3)) == [0, 1, 2]


def test_fashion_mnist_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz \(Debian: apt install dataset-fashion-mnist\)"):
        images.build(config("fashion_mnist", path=str(tmp_path)))


@pytest.mark.parametrize("damage", ["cut", "kind", "labels", "classes"])
def test_damaged_files_are_named(fashion: Path, damage: str) -> None:
    pictures, labels = fashion / "train-images-idx3-ubyte.gz", fashion / "train-labels-idx1-ubyte.gz"
    if damage == "cut":
        pictures.write_bytes(pictures.read_bytes()[:30])
    elif damage == "kind":
        pictures.write_bytes(labels.read_bytes())
    elif damage == "labels":
        image_files.idx(labels, np.arange(6))
    else:
        image_files.idx(labels, np.arange(7) + 5)
    with pytest.raises(UserError, match=r"`data.path` must be .*train-(images|labels)"):
        images.build(config("fashion_mnist", path=str(fashion)))


def test_a_folder_of_folders(folder: Path) -> None:
    train, held_out = images.build(config("image_folder", path=str(folder), image_size=4))
    assert (len(train), len(held_out), train.classes) == (8, 2, ("blue", "red"))
    for index in range(8):
        pixels, label = train[index].pixels, train[index].label
        assert pixels.shape == (3, 4, 4)
        assert float(pixels[0].mean()) == pytest.approx(float(label == 1), abs=1e-6)
        assert float(pixels[2].mean()) == pytest.approx(float(label == 0), abs=1e-6)
    grey, _ = images.build(config("image_folder", path=str(folder), image_size=2, channels=1))
    assert grey.shape == (1, 2, 2)


def test_held_out_images_of_a_folder_of_their_own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "red").mkdir()
    Image.new("L", (4, 4), 9).save(other / "red" / "a.jpg")
    settings = {"path": str(folder), "eval_path": str(other), "image_size": 4}
    train, held_out = images.build(config("image_folder", **settings))
    assert (len(train), len(held_out)) == (10, 1)
    assert held_out[0].label == 1
    (other / "green").mkdir()
    Image.new("L", (4, 4), 9).save(other / "green" / "a.jpg")
    with pytest.raises(UserError, match=r"`data.eval_path` must be .*no 'green'"):
        images.build(config("image_folder", **settings))


def everything(settings: dict[str, Any]) -> None:
    for part in images.build(settings):
        for index in range(len(part)):
            part[index]


@pytest.mark.parametrize("damage", ["missing", "empty", "one", "no images", "broken"])
def test_folders_that_will_not_do(folder: Path, damage: str) -> None:
    path = folder
    if damage == "missing":
        path = folder / "nothing"
    elif damage == "empty":
        path = folder / "empty"
        path.mkdir()
    elif damage == "one":
        path = folder / "one"
        (path / "class").mkdir(parents=True)
    elif damage == "no images":
        (folder / "green").mkdir()
    else:
        (folder / "red" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"`data.path` must be a|`data.path` must be an image that Pillow reads"):
        everything(config("image_folder", path=str(path), image_size=4))


NAMES = {"image_column": "picture", "label_column": "kind", "image_size": 5}


def test_a_saved_dataset(tmp_path: Path) -> None:
    whole = image_files.saved(tmp_path / "whole")
    train, held_out = images.build(config("image_dataset", path=str(whole), channels=1, **NAMES))
    assert (len(train), len(held_out), train.classes) == (8, 2, ("cat", "dog"))
    for index in range(8):
        sample = train[index]
        assert sample.label == sample.id % 2
        torch.testing.assert_close(sample.pixels, torch.full((1, 5, 5), 20 * sample.id / 255))
    parts = image_files.saved(tmp_path / "parts", {"train": 6, "validation": 3})
    train, held_out = images.build(config("image_dataset", path=str(parts), **NAMES))
    assert (len(train), len(held_out)) == (6, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_column": "image"}, r"`data.image_column` must be a column of .* \(it has picture, kind\)"),
        ({"label_column": "picture"}, r"`data.label_column` must be a column of class numbers"),
        ({"image_column": "kind"}, r"`data.image_column` must be a column of images"),
        ({"path": "nothing"}, r"`data.path` must be a folder written by datasets' save_to_disk"),
    ],
)
def test_saved_datasets_that_will_not_do(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    whole = image_files.saved(tmp_path / "whole")
    with pytest.raises(UserError, match=says):
        images.build(config("image_dataset", **{"path": str(whole), **NAMES, **changes}))[0][0]


def test_held_out_labels_are_those_of_the_same_names(tmp_path: Path) -> None:
    whole = str(image_files.saved(tmp_path / "whole"))
    turned = str(image_files.saved(tmp_path / "turned", {"train": 4, "test": 3}, ("dog", "cat")))
    _, held_out = images.build(config("image_dataset", path=whole, eval_path=turned, **NAMES))
    assert len(held_out) == 3, "the part that is for testing"
    assert all(held_out[index].label == 1 - held_out[index].id % 2 for index in range(3))
    other = str(image_files.saved(tmp_path / "other", None, ("dog", "cow")))
    with pytest.raises(UserError, match=r"`data.eval_path` must be .* \(there is no 'cow' among them\)"):
        images.build(config("image_dataset", path=whole, eval_path=other, **NAMES))


@pytest.mark.parametrize(
    ("parts", "names", "says"),
    [
        ({"train": 4, "test": 0}, ("cat", "dog"), "a dataset whose parts have rows"),
        (None, ("cat",), "a dataset of two classes or more"),
    ],
)
def test_saved_datasets_with_too_little(tmp_path: Path, parts: Any, names: tuple[str, ...], says: str) -> None:
    whole = image_files.saved(tmp_path / "whole", parts, names)
    with pytest.raises(UserError, match=rf"`data.path` must be {says}"):
        images.build(config("image_dataset", path=str(whole), **NAMES))


def test_deep_pixels_keep_their_brightness() -> None:
    deep = Image.fromarray(np.full((2, 3), 32768, np.uint16))
    assert deep.mode.startswith("I;16")
    torch.testing.assert_close(pixels_of(deep), torch.full((3, 2, 3), 32768 / 65535))
    with pytest.raises(ValueError, match="no largest value"):
        pixels_of(Image.fromarray(np.full((2, 2), 0.5, np.float32)))


def test_a_camera_that_was_held_sideways() -> None:
    lying = Image.new("RGB", (6, 4), (255, 0, 0))
    lying.getexif()[0x0112] = 6
    assert pixels_of(lying).shape == (3, 6, 4)


def test_an_image_too_large_to_be_meant_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(UserError, match=r"`data.path` must be an image that Pillow reads .*decompression bomb"):
        everything(config("image_folder", path=str(folder), image_size=4))


def test_a_saved_dataset_without_a_training_part(tmp_path: Path) -> None:
    parts = image_files.saved(tmp_path / "parts", {"test": 3})
    with pytest.raises(UserError, match="a part 'train'"):
        images.build(config("image_dataset", path=str(parts), **NAMES))


def test_grey_and_colour() -> None:
    grey = torch.rand(1, 2, 2)
    assert torch.equal(channelled(grey, 3), grey.expand(3, 2, 2))
    assert channelled(grey, 1) is grey
    white = torch.ones(3, 2, 2)
    torch.testing.assert_close(channelled(white, 1), torch.ones(1, 2, 2))


def test_an_image_is_scaled_and_its_middle_kept() -> None:
    wide = torch.zeros(1, 4, 12)
    wide[..., 4:8] = 1
    assert resized(wide, None) is wide
    torch.testing.assert_close(resized(wide, 4), torch.ones(1, 4, 4))
    assert resized(wide, 7).shape == (1, 7, 7)
    constant = torch.full((3, 9, 5), 0.3)
    torch.testing.assert_close(resized(constant, 4), torch.full((3, 4, 4), 0.3))
