"""What networks learn from each other, in float64, against formulas written out for one position at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill.losses.mutual import ensemble, mean_kl, paused

POSITIONS, NETWORKS, CLASSES = 40, 3, 5


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(POSITIONS, NETWORKS, CLASSES, dtype=torch.float64, generator=generator)


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(CLASSES, (POSITIONS,), generator=torch.Generator().manual_seed(1))


def kl(p: Tensor, q: Tensor) -> float:
    return sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))


def test_the_mean_of_kls_to_the_others(logits: Tensor) -> None:
    own, others = logits[:, 0].log_softmax(-1), logits[:, 1:].log_softmax(-1)
    found = mean_kl(own, others)
    for n in range(POSITIONS):
        expected = [kl(others[n, j].exp(), own[n].exp()) for j in range(NETWORKS - 1)]
        assert float(found[n]) == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_the_ensembles(logits: Tensor, labels: Tensor) -> None:
    for n, (row, label) in enumerate(zip(logits, labels.tolist(), strict=True)):
        relative = [[float(z[c] - z[label]) for c in range(CLASSES)] for z in row]
        smallest = [min(each[c] for each in relative) for c in range(CLASSES)]
        losses = [-float(z.log_softmax(-1)[label]) for z in row]
        best = row[losses.index(min(losses))]
        assert torch.allclose(ensemble(logits, labels, "mean")[n], row.sum(0) / NETWORKS, rtol=1e-12)
        assert ensemble(logits, labels, "min_logit")[n].tolist() == pytest.approx(smallest, rel=1e-12)
        assert torch.equal(ensemble(logits, labels, "naive")[n], best)


def test_the_smallest_logits_are_at_least_as_sure_of_the_label_as_any_network(logits: Tensor, labels: Tensor) -> None:
    of_label = ensemble(logits, labels, "min_logit").softmax(-1).gather(-1, labels[:, None])[:, 0]
    each = logits.softmax(-1).gather(-1, labels[:, None, None].expand(-1, NETWORKS, 1))[..., 0]
    assert bool((of_label >= each.amax(1) - 1e-12).all())


def test_an_unknown_ensemble_is_refused(logits: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="one of mean, min_logit, naive, but is 'median'"):
        ensemble(logits, labels, "median")  # type: ignore[arg-type]


def test_the_teacher_pauses_where_the_gap_is_above_the_threshold(logits: Tensor, labels: Tensor) -> None:
    student, teacher = logits[:, 0].softmax(-1), logits[:, 1].softmax(-1)
    found = paused(student.log(), teacher.log(), labels).tolist()
    for n, label in enumerate(labels.tolist()):
        y = [float(c == label) for c in range(CLASSES)]
        e_s = sum(abs(float(p) - t) for p, t in zip(student[n], y, strict=True))
        e_t = sum(abs(float(p) - t) for p, t in zip(teacher[n], y, strict=True))
        gap = sum(abs(float(p) - float(q)) for p, q in zip(student[n], teacher[n], strict=True))
        assert found[n] == (gap > e_s - math.exp(-e_t / (e_s + e_t)) * e_t)
    assert 0 < sum(found) < POSITIONS


def test_nobody_pauses_where_both_are_sure() -> None:
    sure = torch.tensor([[0.0, -math.inf]], dtype=torch.float64)
    assert paused(sure, sure, torch.tensor([0])).tolist() == [False]
