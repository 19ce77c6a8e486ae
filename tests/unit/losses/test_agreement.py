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


def directions(given: Tensor) -> Tensor:
    return agreement.directions(given, agreement.usual(given, SAMPLE, COUNT))


def by_hand(one: Tensor, other: Tensor, temperature: float | None, sign: int) -> tuple[list[float], list[float]]:
    """Weights and cosines of every location, sample by sample; the cosines' floors as the module's text has them."""
    weights, cosines = [], []
    for number in range(COUNT):
        both = [[row.tolist() for row, s in zip(side, SAMPLE, strict=True) if s == number] for side in (one, other)]
        usual = [math.sqrt(sum(x * x for row in side for x in row) / len(side)) for side in both]
        own = []
        for a, b in zip(*both, strict=True):
            lengths = [math.hypot(*row, agreement.FLOOR * size) for row, size in zip((a, b), usual, strict=True)]
            own.append(sum(x * y for x, y in zip(a, b, strict=True)) / math.prod(lengths))
        raised = [math.exp(sign * cosine / (temperature or math.inf)) for cosine in own]
        weights += [value / sum(raised) for value in raised]
        cosines += own
    return weights, cosines


@pytest.mark.parametrize("temperature", [0.1, 1.0, None])
def test_terms_are_those_of_a_loop(temperature: float | None) -> None:
    student, teacher = features(0), features(1)
    pair = directions(student), directions(teacher)
    weights, cosines = by_hand(student, teacher, temperature, 1)
    found = agreement.consensus(*pair, SAMPLE, COUNT, temperature=temperature)
    expected = [weight * (1 - cosine) for weight, cosine in zip(weights, cosines, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    weights, _ = by_hand(student, teacher, temperature, -1)
    found = agreement.divergence(*pair[::-1], SAMPLE, COUNT, temperature=temperature, margin=-0.2)
    expected = [weight * max(cosine + 0.2, 0) for weight, cosine in zip(weights, cosines, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert 0 < sum(value == 0 for value in found.tolist()) < len(SAMPLE)


@pytest.mark.parametrize("term", ["consensus", "divergence"])
def test_gradients_are_differences_at_fixed_weights(term: str) -> None:
    """Weights and usual lengths carry no gradient: they are those of the point where it is taken."""
    moving, still = features(0).requires_grad_(), directions(features(1))
    length = agreement.usual(moving, SAMPLE, COUNT)
    if term == "consensus":
        found = agreement.consensus(directions(moving), still, SAMPLE, COUNT, temperature=0.5)
    else:
        found = agreement.divergence(directions(moving), still, SAMPLE, COUNT, temperature=0.5, margin=-0.2)
    found.sum().backward()
    cosine = agreement.similarity(directions(moving), still).detach()
    weights = agreement.share(cosine if term == "consensus" else -cosine, SAMPLE, COUNT, 0.5)

    def at(value: Tensor) -> float:
        cosines = agreement.similarity(agreement.directions(value, length), still)
        each = 1 - cosines if term == "consensus" else (cosines + 0.2).clamp(min=0)
        return float((weights * each).sum())

    step, active = 1e-6, 0
    assert moving.grad is not None
    for place in [(number, 1) for number in range(len(SAMPLE))]:
        moved = torch.zeros_like(moving)
        moved[place] = step
        expected = (at(moving.detach() + moved) - at(moving.detach() - moved)) / (2 * step)
        assert float(moving.grad[place]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        active += expected != 0
    assert active == len(SAMPLE) if term == "consensus" else 0 < active < len(SAMPLE)


def test_consensus_reaches_the_student_alone_and_divergence_the_teacher() -> None:
    student, teacher = directions(features(0)).requires_grad_(), directions(features(1)).requires_grad_()
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


def test_relations_are_cosines_to_the_other_locations() -> None:
    given = directions(features(0))
    found = agreement.relations(given, SAMPLE, COUNT)
    assert found.shape == (len(SAMPLE), max(LENGTHS))
    first = 0
    for size in LENGTHS:
        for j in range(size):
            row = [0.0 if j == k else float(given[first + j] @ given[first + k]) for k in range(size)]
            assert found[first + j].tolist() == pytest.approx(row + [0.0] * (max(LENGTHS) - size), abs=1e-12)
        first += size
    assert torch.autograd.gradcheck(
        lambda x: agreement.relations(x, SAMPLE, COUNT), given.requires_grad_(), eps=1e-6, atol=1e-8
    )


def test_of_many_others_some_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "OTHERS", 3)
    given = directions(features(0))
    found = agreement.relations(given, SAMPLE, COUNT)
    # The last sample has five locations: the first, the second and the fourth are looked at.
    assert found.shape == (len(SAMPLE), 3)
    own = given[SAMPLE == 2]
    for j, row in enumerate(found[SAMPLE == 2].tolist()):
        assert row == pytest.approx([0.0 if j == k else float(own[j] @ own[k]) for k in (0, 1, 3)], abs=1e-12)
    own = given[SAMPLE == 0]
    torch.testing.assert_close(found[SAMPLE == 0], own @ own.T - torch.diag((own * own).sum(1)))


def test_autocast_does_not_round_relations() -> None:
    given = directions(features(0)).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = agreement.relations(given, SAMPLE, COUNT)
    assert torch.equal(found, agreement.relations(given, SAMPLE, COUNT))


def test_relations_know_no_channel() -> None:
    """Turned by any rotation, and of another width, a network relates its places alike."""
    given = features(0)
    turn, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    one, other = (agreement.relations(directions(x), SAMPLE, COUNT) for x in (given, given @ turn[:4]))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("related", [False, True])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("blank", ["zeros", "one value", "nearly one value", "one place", "one place and a trace"])
def test_a_sample_that_says_nothing_has_no_large_gradient(blank: str, center: bool, related: bool) -> None:
    """As on a blank image: exact cosines of what centring leaves would have gradients of 1e7 and more."""
    student = features(0).float()
    student[SAMPLE == 2] = 3.0 if "value" in blank else 0.0
    if blank == "nearly one value":
        student += 1e-7 * features(3).float()
    if "place" in blank:
        student[-1] = 1.0
        student[-2] = 1e-18 if "trace" in blank else 0.0
    student.requires_grad_()

    def described(given: Tensor) -> Tensor:
        free = agreement.centred(given, SAMPLE, COUNT) if center else given
        found = agreement.directions(free, agreement.usual(given, SAMPLE, COUNT))
        if not related:
            return found
        rows = agreement.relations(found, SAMPLE, COUNT)
        return agreement.directions(rows, agreement.usual(rows, SAMPLE, COUNT), agreement.UNRELATED)

    teacher = described(features(1).float())
    agreement.consensus(described(student), teacher, SAMPLE, COUNT, temperature=0.1).sum().backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert float(student.grad.norm()) < 1e4


def test_many_locations() -> None:
    """1 + 1 + … in bf16 would end at 256: callers pass fp32."""
    count = 1000
    sample = torch.zeros(count, dtype=torch.long)
    one, other = (torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + 5 for seed in (0, 1))
    found = [agreement.centred(side, sample, 1) for side in (one, other)]
    assert float(found[0].mean(0).abs().max()) < 1e-4
    cosine = agreement.similarity(*(agreement.directions(side, agreement.usual(side, sample, 1)) for side in found))
    assert abs(float(cosine.mean())) < 0.05


@pytest.mark.parametrize(("size", "parts"), [(6, 3), (7, 3), (5, 5), (8, 5)])
def test_averaging_is_adaptive_pooling(size: int, parts: int) -> None:
    values = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.adaptive_avg_pool1d(values, parts)
    torch.testing.assert_close(values @ agreement.averaging(size, parts, values).T, expected)
