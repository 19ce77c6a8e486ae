"""Consensus and divergence against loops over samples, their gradients by differences, and whom they reach."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill.losses import agreement

LENGTHS = (3, 1, 5)
SAMPLE = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
COUNT = len(LENGTHS)


def features(seed: int, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(SAMPLE), width, generator=generator, dtype=torch.float64)


def by_hand(one: Tensor, other: Tensor, temperature: float | None, sign: int) -> tuple[list[float], list[float]]:
    """Weights and cosines of every location, sample by sample."""
    weights, cosines = [], []
    for number in range(COUNT):
        pairs = [(a.tolist(), b.tolist()) for a, b, s in zip(one, other, SAMPLE, strict=True) if s == number]
        own = [sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)) for a, b in pairs]
        raised = [math.exp(sign * cosine / (temperature or math.inf)) for cosine in own]
        weights += [value / sum(raised) for value in raised]
        cosines += own
    return weights, cosines


@pytest.mark.parametrize("temperature", [0.1, 1.0, None])
def test_terms_are_those_of_a_loop(temperature: float | None) -> None:
    student, teacher = features(0), features(1)
    weights, cosines = by_hand(student, teacher, temperature, 1)
    found = agreement.consensus(student, teacher, SAMPLE, COUNT, temperature=temperature)
    expected = [weight * (1 - cosine) for weight, cosine in zip(weights, cosines, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    weights, _ = by_hand(student, teacher, temperature, -1)
    found = agreement.divergence(teacher, student, SAMPLE, COUNT, temperature=temperature, margin=-0.2)
    expected = [weight * max(cosine + 0.2, 0) for weight, cosine in zip(weights, cosines, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert 0 < sum(value == 0 for value in found.tolist()) < len(SAMPLE)


def test_gradients_are_differences_at_fixed_weights() -> None:
    """Weights carry no gradient: they are those of the point where it is taken."""
    student, teacher = features(0).requires_grad_(), features(1)
    agreement.consensus(student, teacher, SAMPLE, COUNT, temperature=0.5).sum().backward()
    weights = agreement.share(agreement.similarity(student, teacher).detach(), SAMPLE, COUNT, 0.5)

    def at(value: Tensor) -> Tensor:
        return (weights * (1 - agreement.similarity(value, teacher))).sum()

    step = 1e-6
    for place in [(0, 0), (3, 2), (8, 1)]:
        moved = torch.zeros_like(student)
        moved[place] = step
        expected = (at(student + moved) - at(student - moved)) / (2 * step)
        assert student.grad is not None
        assert float(student.grad[place]) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_consensus_reaches_the_student_alone_and_divergence_the_teacher() -> None:
    student, teacher = features(0).requires_grad_(), features(1).requires_grad_()
    agreement.consensus(student, teacher, SAMPLE, COUNT, temperature=1.0).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert float(student.grad.abs().max()) > 0
    student.grad = None
    agreement.divergence(teacher, student, SAMPLE, COUNT, temperature=1.0, margin=-1.0).sum().backward()
    assert student.grad is None
    assert teacher.grad is not None
    assert float(teacher.grad.abs().max()) > 0


def test_samples_do_not_depend_on_those_beside_them() -> None:
    student, teacher = features(0), features(1)
    whole = agreement.consensus(student, teacher, SAMPLE, COUNT, temperature=0.3)
    for number in range(COUNT):
        own = number == SAMPLE
        zeros = torch.zeros(int(own.sum()), dtype=torch.long)
        alone = agreement.consensus(student[own], teacher[own], zeros, 1, temperature=0.3)
        torch.testing.assert_close(alone, whole[own], rtol=1e-12, atol=0)


def test_a_low_temperature_looks_at_one_location_alone() -> None:
    student, teacher = features(0), features(1)
    weights = agreement.share(agreement.similarity(student, teacher), SAMPLE, COUNT, 1e-4)
    assert weights.max() <= 1
    for number in range(COUNT):
        assert sorted(weights[number == SAMPLE].tolist())[-1] == pytest.approx(1)


def test_centred_and_pooled() -> None:
    found = agreement.centred(features(0) + 5, SAMPLE, COUNT)
    sums = torch.zeros(COUNT, 4, dtype=torch.float64).index_add(0, SAMPLE, found)
    assert float(sums.abs().max()) < 1e-12
    wide = features(2, width=6)
    torch.testing.assert_close(agreement.pooled(wide, 3), wide.reshape(-1, 3, 2).mean(-1))
    assert agreement.pooled(wide, 6) is wide


def test_zeros_and_sixteen_bits_stay_finite() -> None:
    student = torch.zeros(len(SAMPLE), 4, dtype=torch.bfloat16, requires_grad=True)
    found = agreement.consensus(student, features(1).bfloat16(), SAMPLE, COUNT, temperature=0.1)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
