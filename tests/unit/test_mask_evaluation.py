"""mIoU, accuracy, calibration and distance to a teacher of pixels, against what is counted by hand; over two ranks."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error

from distill import distributed, mask_evaluation, training
from distill.data.mask_files import Masks
from distill.errors import UserError
from distill.image_evaluation import BINS, measure
from distill.images import IGNORED
from distill.mask_evaluation import Tally, evaluate
from tests import tiny

OPTIONS: dict[str, Any] = {"batch_size": 3, "limit": 7}


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, Any]:
    """A student that is sure of itself, a frozen teacher, held-out scenes with a corner of no class."""
    config = tiny.config("offline_kd", **tiny.MASKS)
    lm, teacher = training.build_models(config)
    with torch.no_grad():
        lm.model.decode_head.classifier.weight.normal_(std=0.6, generator=torch.Generator().manual_seed(1))
    data = training.build_data(config, lm)[1]

    def cut(number: int) -> torch.Tensor:
        mask = data.source.labels[number].clone()
        mask[: 2 + number % 3, :5] = IGNORED
        return mask

    return lm, teacher, replace(data, source=replace(data.source, labels=Masks(len(data), cut)))


def by_hand(lm: Any, data: Any, count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """fp64 log-probabilities ``[N, V]`` and labels ``[N]``."""
    samples = [data[index] for index in range(count)]
    lm.model.eval()
    with torch.no_grad():
        logits = lm.hidden(torch.stack([sample.pixels for sample in samples]))
        scaled = torch.nn.functional.interpolate(logits, size=(16, 16), mode="bilinear").double()
    masks = torch.stack([sample.label for sample in samples])
    return scaled.log_softmax(1).permute(0, 2, 3, 1)[masks != IGNORED], masks[masks != IGNORED]


def iou_by_hand(guesses: torch.Tensor, labels: torch.Tensor, classes: int) -> float:
    found = []
    for number in range(classes):
        ours, theirs = guesses == number, labels == number
        if bool((ours | theirs).any()):
            found.append(int((ours & theirs).sum()) / int((ours | theirs).sum()))
    return sum(found) / len(found)


def test_numbers_are_those_counted_by_hand(parts: tuple[Any, Any, Any]) -> None:
    lm, teacher, data = parts
    result = evaluate(lm, teacher, data, **OPTIONS)
    ours, labels = by_hand(lm, data)
    theirs, _ = by_hand(teacher.lm, data)
    guesses = ours.argmax(-1)
    assert len(guesses.unique()) > 2
    assert result.accuracy == pytest.approx(float((guesses == labels).double().mean()))
    assert result.miou == pytest.approx(iou_by_hand(guesses, labels, 6), rel=1e-5)
    assert result.ce == pytest.approx(float(-ours[torch.arange(len(labels)), labels].mean()), rel=1e-6)
    assert result.kl == pytest.approx(float((ours.exp() * (ours - theirs)).sum(-1).mean()), rel=1e-5)
    assert result.forward_kl == pytest.approx(float((theirs.exp() * (theirs - ours)).sum(-1).mean()), rel=1e-5)
    assert result.agreement == pytest.approx(float((guesses == theirs.argmax(-1)).double().mean()))
    expected = multiclass_calibration_error(ours.exp(), labels, num_classes=6, n_bins=BINS, norm="l1")
    assert result.ece == pytest.approx(float(expected), rel=1e-5)
    assert result.ece > 0.05
    assert result.top5 is None
    assert set(evaluate(lm, None, data, **OPTIONS).metrics()) == {
        f"eval/{key}" for key in ("accuracy", "ece", "ce", "miou")
    }


def test_a_class_that_nobody_names_does_not_count() -> None:
    """Class 2 is nowhere and class 3 is guessed alone: (1/2 + 1 + 0) / 3."""
    labels, guesses = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 3, 1, 1])
    tally = Tally(4)
    tally.add(torch.nn.functional.one_hot(guesses, 4).double().mul(9).log_softmax(-1), None, labels)
    _, _, miou = tally.total()
    assert miou == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert miou == pytest.approx(iou_by_hand(guesses, labels, 4))


def test_chunks_batches_and_modes_change_nothing(parts: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, teacher, data = parts
    whole = evaluate(lm, teacher, data, batch_size=100, limit=7)
    lm.model.train()
    monkeypatch.setattr(mask_evaluation, "CHUNK", 50)
    cut = evaluate(lm, teacher, data, **OPTIONS)
    assert lm.model.training
    assert cut.metrics() == pytest.approx(whole.metrics(), rel=1e-5)
    assert cut.samples == whole.samples


def test_two_ranks_find_what_one_finds(parts: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's sums are made in turn; then what they exchange is there."""
    lm, teacher, data = parts
    alone = evaluate(lm, teacher, data, **OPTIONS)
    told: dict[int, list[Any]] = {0: [], 1: []}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        mine = told[rank]
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "all_sum", lambda value, mine=mine: mine.append(value) or value)
        monkeypatch.setattr(distributed, "gather_objects", lambda value, mine=mine: mine.append(value) or [value])
        evaluate(lm, teacher, data, **OPTIONS)
    both = iter([[one, other] for one, other in zip(told[0], told[1], strict=True)])
    monkeypatch.setattr(distributed, "all_sum", lambda value: sum(next(both)))
    monkeypatch.setattr(distributed, "gather_objects", lambda value: next(both))
    together = evaluate(lm, teacher, data, **OPTIONS)
    assert together.metrics() == pytest.approx(alone.metrics(), rel=1e-6)
    assert together.samples == alone.samples


def test_samples_say_what_was_seen_and_the_first_show_it(parts: tuple[Any, Any, Any]) -> None:
    lm, _, data = parts
    shown = evaluate(lm, None, data, keep_samples=6, **OPTIONS).samples
    assert len(shown) == 6
    assert [sample["prompt"] for sample in shown] == [f"image {data[index].id}" for index in range(6)]
    assert "ground" in shown[0]["answer"]
    assert "pixels right)" in shown[0]["completion"]
    assert ["picture" in sample for sample in shown] == [True] * 4 + [False] * 2
    image = Image.open(io.BytesIO(base64.b64decode(shown[0]["picture"].partition(",")[2])))
    assert image.size == (3 * 16 + 2 * 2, 16)
    mask = data[0].label
    for row, column in ((0, 0), (8, 8)):
        colour = image.getpixel((18 + column, row))
        assert (colour == (255, 255, 255)) == (int(mask[row, column]) == IGNORED)
        assert (colour == (0, 0, 0)) == (int(mask[row, column]) == 0)


def test_the_teachers_numbers_are_measured_once(parts: tuple[Any, Any, Any]) -> None:
    lm, teacher, data = parts
    found = measure(lm, teacher, data, False, OPTIONS, evaluate)
    score = evaluate(teacher.lm, None, data, **OPTIONS)
    assert found == {f"eval/teacher_{key}": getattr(score, key) for key in ("accuracy", "ece", "miou")}


def test_nothing_to_count_is_refused(parts: tuple[Any, Any, Any]) -> None:
    lm, _, data = parts
    with pytest.raises(UserError, match=r"`data.eval_size` must be at least 1"):
        evaluate(lm, None, replace(data, chosen=()), batch_size=7)
    nothing = Masks(len(data), lambda number: torch.full((16, 16), IGNORED))
    with pytest.raises(UserError, match=r"held-out masks with a pixel of some class"):
        evaluate(lm, None, replace(data, source=replace(data.source, labels=nothing)), **OPTIONS)
