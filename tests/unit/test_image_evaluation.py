"""Accuracy, calibration and distance to a teacher on images, against what is counted by hand; also over two ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from distill import distributed, training
from distill.errors import RunError, UserError
from distill.image_evaluation import BINS, ImageEvaluation, evaluate, measure
from distill.teachers.frozen import FrozenTeacher
from tests import tiny

OPTIONS: dict[str, Any] = {"batch_size": 7, "limit": 23}


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, Any]:
    """A student that is sure of itself, a frozen teacher, held-out digits."""
    config = tiny.config("offline_kd", **tiny.PICTURED["offline_kd"])
    lm, teacher = training.build_models(config)
    with torch.no_grad():
        lm.model.classifier.weight.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    return lm, teacher, training.build_data(config, lm)[1]


def logits(lm: Any, data: Any, count: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    samples = [data[index] for index in range(count)]
    lm.model.eval()
    with torch.no_grad():
        found = lm.head(lm.hidden(torch.stack([sample.pixels for sample in samples]))).double()
    return found.log_softmax(-1), torch.tensor([sample.label for sample in samples])


def test_numbers_are_those_counted_by_hand(parts: tuple[Any, Any, Any]) -> None:
    lm, teacher, data = parts
    result = evaluate(lm, teacher, data, **OPTIONS)
    ours, labels = logits(lm, data)
    theirs, _ = logits(teacher.lm, data)
    right = ours.argmax(-1) == labels
    assert result.accuracy == pytest.approx(float(right.double().mean()))
    assert result.top5 == pytest.approx(float((ours.topk(5).indices == labels[:, None]).any(-1).double().mean()))
    assert result.ce == pytest.approx(float(-ours[torch.arange(23), labels].mean()))
    assert result.kl == pytest.approx(float((ours.exp() * (ours - theirs)).sum(-1).mean()), rel=1e-6)
    assert result.forward_kl == pytest.approx(float((theirs.exp() * (theirs - ours)).sum(-1).mean()), rel=1e-6)
    assert result.agreement == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()))
    confidence = ours.exp().amax(-1)
    bins = (confidence * BINS).ceil().clamp(1, BINS)
    gaps = [
        float((bins == number).double().mean() * (right[bins == number].double() - confidence[bins == number]).mean())
        for number in range(1, BINS + 1)
        if (bins == number).any()
    ]
    assert result.ece == pytest.approx(sum(map(abs, gaps)), rel=1e-4)
    assert result.ece > 0.05


def test_without_a_teacher_nothing_is_said_of_one(parts: tuple[Any, Any, Any]) -> None:
    lm, _, data = parts
    keys = {"accuracy", "top5_accuracy", "ece", "ce"}
    assert set(evaluate(lm, None, data, **OPTIONS).metrics()) == {f"eval/{key}" for key in keys}


def test_predictions_are_in_the_order_of_the_data(parts: tuple[Any, Any, Any]) -> None:
    lm, _, data = parts
    shown = evaluate(lm, None, data, keep_samples=3, **OPTIONS).samples
    ours, labels = logits(lm, data)
    for index, sample in enumerate(shown):
        assert sample["prompt"] == f"image {data[index].id}"
        assert sample["answer"] == str(int(labels[index]))
        assert sample["completion"].startswith(f"{int(ours[index].argmax())} (")
        assert sample["score"] == float(ours[index].argmax() == labels[index])
    assert len(shown) == 3


def test_batches_change_nothing_and_the_model_stays_in_its_mode(parts: tuple[Any, Any, Any]) -> None:
    lm, teacher, data = parts
    heard: list[int] = []
    lm.model.train()
    parts_of = evaluate(lm, teacher, data, on_progress=heard.append, **OPTIONS).metrics()
    assert lm.model.training
    assert heard == [7, 7, 7, 2]
    assert evaluate(lm, teacher, data, batch_size=100, limit=23).metrics() == pytest.approx(parts_of, rel=1e-5)


def test_two_ranks_find_what_one_finds(parts: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's share is made in turn; then what they exchange is there."""
    lm, teacher, data = parts
    alone = evaluate(lm, teacher, data, **OPTIONS)
    shares: list[Any] = []

    def leave(share: Any) -> Any:
        shares.append(share)
        raise KeyboardInterrupt

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_objects", leave)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with pytest.raises(KeyboardInterrupt):
            evaluate(lm, teacher, data, **OPTIONS)
    assert [len(share[0]) for share in shares] == [12, 11]
    monkeypatch.setattr(distributed, "gather_objects", lambda share: shares)
    together = evaluate(lm, teacher, data, **OPTIONS)
    assert together.metrics() == pytest.approx(alone.metrics(), rel=1e-5)
    assert [sample["prompt"] for sample in together.samples] == [sample["prompt"] for sample in alone.samples]


def test_the_teachers_numbers_are_measured_once(parts: tuple[Any, Any, Any]) -> None:
    lm, teacher, data = parts
    found = measure(lm, teacher, data, False, OPTIONS)
    score = evaluate(teacher.lm, None, data, **OPTIONS)
    assert found == {"eval/teacher_accuracy": score.accuracy, "eval/teacher_ece": score.ece}
    assert measure(lm, None, data, False, OPTIONS) == {}


def test_a_model_is_at_no_distance_from_itself(parts: tuple[Any, Any, Any]) -> None:
    lm, teacher, data = parts
    assert "eval/teacher_accuracy" in measure(teacher.lm, FrozenTeacher(teacher.lm), data, True, OPTIONS)
    with pytest.raises(RunError, match="but their KL is"):
        measure(lm, teacher, data, True, OPTIONS)


def test_no_images_are_refused(parts: tuple[Any, Any, Any]) -> None:
    lm, _, data = parts
    with pytest.raises(UserError, match=r"`data.eval_size` must be at least 1"):
        evaluate(lm, None, replace(data, chosen=()), batch_size=7)


def test_keys_are_documented() -> None:
    from distill.callbacks.evaluation import KEYS

    full = ImageEvaluation(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, [])
    assert set(full.metrics()) <= set(KEYS)
    assert {"eval/teacher_accuracy", "eval/teacher_ece"} <= set(KEYS)
