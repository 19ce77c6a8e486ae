"""Scenes: the same every time, and a mask that says which shape each pixel was painted with."""

from __future__ import annotations

import pytest
import torch

from distill.config.schema import Data
from distill.data import images, scenes
from distill.data.scenes import CLASSES, inside, scene


def test_a_scene_is_a_function_of_seed_number_and_size() -> None:
    pixels, mask = scene(3, 7)
    again = scene(3, 7)
    assert torch.equal(pixels, again[0])
    assert torch.equal(mask, again[1])
    for other in (scene(4, 7), scene(3, 8)):
        assert not torch.equal(mask, other[1])
    assert (pixels.shape, mask.shape, mask.dtype) == ((3, 32, 32), (32, 32), torch.int64)
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 1
    assert scene(3, 7, size=20)[1].shape == (20, 20)


def test_a_scene_is_what_it_has_always_been() -> None:
    """Another numpy or torch must not move a shape: numbers of runs would mean something else."""
    pixels, mask = scene(0, 0, size=16)
    assert mask.flatten().bincount(minlength=6).tolist() == [182, 0, 27, 0, 0, 47]
    assert float(pixels.mean()) == pytest.approx(0.3969, abs=1e-4)


def test_masks_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise all pixels of a shape have one colour, and each of its class: edges included."""
    monkeypatch.setattr(scenes, "NOISE", 0.0)
    for number in range(20):
        pixels, mask = scene(1, number)
        painted = pixels[:, mask > 0].T.unique(dim=0)
        assert 1 <= len(painted) <= scenes.MOST
        for colour in painted:
            here = (pixels == colour[:, None, None]).all(0)
            assert len(mask[here].unique()) == 1
            assert int(mask[here][0]) > 0
        # The ground is a gradient, but for its corners: no shape was left out of the mask.
        _, counts = pixels[:, mask == 0].T.unique(dim=0, return_counts=True)
        assert int(counts.max()) <= 16


def test_shapes_are_what_they_are_called() -> None:
    grid = (torch.arange(400) + 0.5) / 200 - 1
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    areas = {"disc": 3.1416 * 0.81, "square": 2.25, "triangle": 1.299, "ring": 3.1416 * (1 - 0.55**2)}
    areas["cross"] = 2 * 2 * 0.6 - 0.36
    assert set(areas) == set(CLASSES[1:])
    for shape, area in areas.items():
        assert float(inside(shape, x, y).float().mean()) * 4 == pytest.approx(area, rel=0.01), shape


def test_held_out_scenes_are_others() -> None:
    train, held_out = images.build(Data(source="scenes").model_dump())
    assert (len(train), len(held_out), train.classes) == (10_000, 1_000, CLASSES)
    assert train.shape == (3, 32, 32)
    kept = {train[index].pixels.numpy().tobytes() for index in range(50)}
    assert kept.isdisjoint({held_out[index].pixels.numpy().tobytes() for index in range(50)})
    masks = torch.stack([torch.as_tensor(train[index].label) for index in range(200)])
    shares = masks.flatten().bincount(minlength=6) / masks.numel()
    assert 0.5 < float(shares[0]) < 0.9
    assert float(shares[1:].min()) > 0.01, "every shape is there"
    larger, _ = images.build(Data(source="scenes", image_size=48, limit=30).model_dump())
    assert (len(larger), larger.shape) == (30, (3, 48, 48))
