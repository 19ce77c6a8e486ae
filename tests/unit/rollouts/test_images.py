"""Images changed at random: a function of seed, step, sample and copy, and of nothing else."""

from __future__ import annotations

import torch

from distill.images import IGNORED, ImageSample, collate
from distill.rollouts.images import Augmentation, ImageRollout

PIXELS = torch.arange(12.0).view(1, 3, 4) / 12
SAMPLES = [ImageSample(number, PIXELS, number % 2) for number in range(64)]


def pixels(rollout: ImageRollout, numbers: range = range(64), step: int = 3, copy: int = 0) -> torch.Tensor:
    rows = rollout([SAMPLES[number] for number in numbers], [copy] * len(numbers), step)
    return collate(rows, len(rows)).pixels


def test_without_augmentation_rows_are_the_images() -> None:
    rows = ImageRollout(0)(SAMPLES[:2], [0, 1], step=5)
    assert [row.label for row in rows] == [0, 1]
    assert [row.sample_id for row in rows] == [0, 1]
    assert all(row.pixels is PIXELS for row in rows)


def test_what_an_image_becomes_depends_on_nothing_else_in_the_batch() -> None:
    rollout = ImageRollout(1, Augmentation(pad=1, flip=True))
    whole = pixels(rollout)
    assert torch.equal(whole[10:20], pixels(ImageRollout(1, Augmentation(pad=1, flip=True)), range(10, 20)))


def test_seed_step_and_copy_make_another_one() -> None:
    change = Augmentation(pad=1, flip=True)
    first = pixels(ImageRollout(1, change))
    others = [pixels(ImageRollout(2, change)), pixels(ImageRollout(1, change), step=4)]
    others.append(pixels(ImageRollout(1, change), copy=1))
    assert all(not torch.equal(first, other) for other in others)


def test_half_of_the_images_are_mirrored() -> None:
    found = pixels(ImageRollout(0, Augmentation(flip=True)))
    mirrored = [torch.equal(one, PIXELS.flip(-1)) for one in found]
    assert all(flipped or torch.equal(one, PIXELS) for one, flipped in zip(found, mirrored, strict=True))
    assert 20 < sum(mirrored) < 44


def test_windows_are_everywhere_and_nowhere_else() -> None:
    found = {tuple(one.flatten().tolist()) for one in pixels(ImageRollout(0, Augmentation(pad=1)), range(64))}
    padded = torch.nn.functional.pad(PIXELS, (1, 1, 1, 1))
    possible = {
        tuple(padded[:, top : top + 3, left : left + 4].flatten().tolist()) for top in range(3) for left in range(3)
    }
    assert found == possible
    assert len(possible) == 9


def test_the_ends_of_the_range_are_the_corners() -> None:
    change = Augmentation(pad=1, flip=True)
    assert torch.equal(change(PIXELS, (0.0, 0.0, 0.9))[:, 1:, 1:], PIXELS[:, :2, :3])
    assert torch.equal(change(PIXELS, (0.999, 0.999, 0.9))[:, :2, :3], PIXELS[:, 1:, 1:])
    assert torch.equal(change(PIXELS, (0.4, 0.4, 0.4)), PIXELS.flip(-1)), "the middle, mirrored"


def test_a_mask_is_changed_with_its_image() -> None:
    """Each pixel keeps the class it had; what came in from outside has none, and is no target."""
    mask = (PIXELS[0] * 12).round().long()
    samples = [ImageSample(number, PIXELS, mask) for number in range(32)]
    rows = ImageRollout(3, Augmentation(pad=1, flip=True))(samples, [0] * 32, step=2)
    whole = [row for row in rows if row.positions == 12]
    assert 0 < len(whole) < 32
    for row in rows:
        assert isinstance(row.label, torch.Tensor)
        inside = row.label != IGNORED
        assert torch.equal(row.label[inside], (row.pixels[0] * 12).round().long()[inside])
        assert int(inside.sum()) == row.positions >= 6
        assert float(row.pixels[0][~inside].abs().sum()) == 0
