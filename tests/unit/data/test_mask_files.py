"""Images with masks in files: read, brought to one size together, and in one line what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.config.schema import Data
from distill.data import images
from distill.data.mask_files import names, numbers_of
from distill.errors import UserError
from tests import image_files

GIVEN: dict[str, Any] = {"image_size": 4, "classes": ["ground", "left", "right"]}


def built(path: Path, **changes: Any) -> tuple[images.Images, images.Images]:
    return images.build(Data(source="mask_folder", path=str(path), **GIVEN | changes).model_dump())


def everything(path: Path, **changes: Any) -> None:
    for part in built(path, **changes):
        for index in range(len(part)):
            part[index]


def test_a_folder_of_pairs(tmp_path: Path) -> None:
    train, held_out = built(image_files.pairs(tmp_path / "pairs"))
    assert (len(train), len(held_out), train.classes) == (5, 1, ("ground", "left", "right"))
    for index in range(5):
        sample = train[index]
        assert sample.pixels.shape == (3, 4, 4)
        assert isinstance(sample.label, torch.Tensor)
        assert sample.label.dtype == torch.int64
        # The mask was scaled and cut as the image was: red is class 1, blue class 2, and one row has no class.
        assert torch.equal(sample.label[1:] == 1, sample.pixels[0, 1:] > 0.5)
        assert torch.equal(sample.label[1:] == 2, sample.pixels[2, 1:] > 0.5)
        assert sample.label[0].tolist() == [255] * 4


def test_held_out_pairs_of_a_folder_of_their_own(tmp_path: Path) -> None:
    other = image_files.pairs(tmp_path / "other")
    train, held_out = built(image_files.pairs(tmp_path / "pairs"), eval_path=str(other), classes=3)
    assert (len(train), len(held_out), train.classes[2]) == (6, 6, "LABEL_2")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("no folder", r"`data.path` must be a folder with the sub-folders images and masks"),
        ("no mask", r"`data.path` must be .*\(there is no masks/a/3.png\)"),
        ("empty", r"`data.path` must be a folder with images"),
        (
            "size",
            r"`data.path` must be masks as large .* \(masks/a/3.png is 5 by 12 pixels, images/a/3.png 6 by 12, each",
        ),
        ("class", r"`data.path` must be a mask \(it has the value 3, and data.classes numbers 0 to 2\)"),
        ("colour", r"`data.path` must be a mask \(its pixels are of mode 'RGB'"),
        ("broken", r"`data.path` must be a mask \(cannot identify"),
    ],
)
def test_folders_that_will_not_do(tmp_path: Path, damage: str, says: str) -> None:
    path = image_files.pairs(tmp_path / "pairs")
    mask = path / "masks" / "a" / "3.png"
    if damage == "no folder":
        path = tmp_path
    elif damage == "no mask":
        mask.unlink()
    elif damage == "empty":
        for file in (path / "images").rglob("*.png"):
            file.unlink()
    elif damage == "size":
        Image.new("L", (12, 5)).save(mask)
    elif damage == "class":
        Image.new("L", (12, 6), 3).save(mask)
    elif damage == "colour":
        Image.new("RGB", (12, 6)).save(mask)
    else:
        mask.write_bytes(b"no picture")
    with pytest.raises(UserError, match=says):
        everything(path)


def test_a_saved_dataset(tmp_path: Path) -> None:
    path = image_files.saved_pairs(tmp_path / "saved")
    columns = {"image_column": "picture", "label_column": "mask", **GIVEN, "image_size": 6}
    train, held_out = images.build(Data(source="mask_dataset", path=str(path), **columns).model_dump())
    assert (len(train), len(held_out)) == (4, 1)
    label = train[0].label
    assert isinstance(label, torch.Tensor)
    assert label.unique().tolist() == [1, 2]
    with pytest.raises(UserError, match=r"`data.label_column` must be a column of .* \(it has picture, mask\)"):
        images.build(Data(source="mask_dataset", path=str(path), **columns | {"label_column": "x"}).model_dump())
    wrong = columns | {"image_column": "mask", "label_column": "picture"}
    with pytest.raises(UserError, match=r"`data.label_column` must be a column of masks \(row .* mode 'RGB'"):
        images.build(Data(source="mask_dataset", path=str(path), **wrong).model_dump())[0][0]


def test_numbers_are_those_of_the_file() -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8), "L").convert("P")
    palette.putdata([0, 1, 2, 255])
    assert numbers_of(palette, 3).tolist() == [[0, 1], [2, 255]]
    deep = Image.fromarray(np.array([[0, 254]], np.uint16))
    assert numbers_of(deep, 255).tolist() == [[0, 254]]


def turned(picture: Image.Image, file: Path) -> None:
    """Written as a camera held upright does: lying on its side, with a tag that says so."""
    tag = Image.Exif()
    tag[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(file, exif=tag, **LOSSLESS.get(file.suffix, {}))


LOSSLESS: dict[str, dict[str, Any]] = {".jpg": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("tagged", ["image", "image and mask", "mask"])
def test_image_and_mask_are_turned_by_their_own_tags(tagged: str, tmp_path: Path) -> None:
    """A mask without a tag is one of the image as it is shown, which is how tools draw them."""
    path = image_files.pairs(tmp_path / "pairs")
    upright = [built(path)[0][index] for index in range(5)]
    for file in (path / "images" / "a").glob("*.png"):
        mask = path / "masks" / "a" / file.name
        if "image" in tagged:
            turned(Image.open(file), file.with_suffix(".jpg"))
            file.unlink()
        if "mask" in tagged:
            turned(Image.open(mask), mask)
    for index, expected in enumerate(upright):
        found = built(path)[0][index]
        assert isinstance(found.label, torch.Tensor)
        assert torch.equal(found.label, torch.as_tensor(expected.label))
        torch.testing.assert_close(found.pixels, expected.pixels, rtol=0, atol=0.05)


def test_a_mask_of_the_image_as_it_is_stored_is_refused(tmp_path: Path) -> None:
    """Which can be told where the image is no square."""
    path = image_files.pairs(tmp_path / "pairs")
    for part in ("images", "masks"):
        file = path / part / "a" / "3.png"
        turned(Image.open(file), file)
        if part == "masks":
            Image.open(file).save(file, exif=Image.Exif())
    with pytest.raises(UserError, match=r"\(masks/a/3.png is 12 by 6 pixels, images/a/3.png 6 by 12, each turned as"):
        everything(path)


@pytest.mark.parametrize("given", [1, 256, ["a"], ["a", "a"]])
def test_classes_that_cannot_be_told_apart(given: Any) -> None:
    with pytest.raises(UserError, match=r"`data.classes` must be from 2 to 255 different names, or their number"):
        names(given)
