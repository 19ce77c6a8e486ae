"""What a cache keeps of a distribution, against definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill.cache.compress import Kept, compress, expand
from distill.losses.divergence import forward_kl
from distill.losses.topk import topk_forward_kl, topk_reverse_kl

V = 40


def distributions(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, V, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (count,), generator=generator)
    return torch.log_softmax(logits, -1), targets, torch.rand(count, generator=generator, dtype=torch.float64)


def round_trip(k: int, draws: int, count: int = 50) -> tuple[Tensor, Tensor, Tensor, Kept]:
    log_probs, targets, uniforms = distributions(count)
    kept = compress(log_probs, targets, k, draws, uniforms)
    return log_probs, targets, expand(kept, targets, V), kept


@pytest.mark.parametrize("k", [V, V + 100])
@pytest.mark.parametrize("draws", [0, 3])
def test_all_tokens_give_the_distribution_back(k, draws):
    log_probs, _, found, kept = round_trip(k, draws)
    torch.testing.assert_close(found.double(), log_probs, rtol=0, atol=1e-6)
    assert bool(torch.isneginf(kept.log_rest).all())


@pytest.mark.parametrize("k", [1, 5, V - 1])
@pytest.mark.parametrize("draws", [0, 1, 7])
def test_the_likeliest_tokens_and_the_target_are_exact_and_nothing_is_lost(k, draws):
    log_probs, targets, found, kept = round_trip(k, draws)
    top = log_probs.topk(k).indices
    assert torch.equal(kept.tokens, top)
    for ids in (top, targets[:, None]):
        torch.testing.assert_close(found.gather(-1, ids).double(), log_probs.gather(-1, ids), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(found)), rtol=0, atol=1e-5)
    for row, target, ids, rest in zip(log_probs, targets, top, kept.log_rest, strict=True):
        others = [row[i].item() for i in range(V) if i != target and i not in ids]
        expected = math.log(sum(map(math.exp, others))) if others else -math.inf
        assert rest.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("k", [3, 10])
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "truncate"])
def test_divergences_over_the_top_k_are_those_of_the_live_teacher(k, tail):
    log_probs, _, found, _ = round_trip(10, 0)
    student = distributions(len(found), seed=1)[0]
    for divergence in (topk_forward_kl, topk_reverse_kl):
        live = divergence(student, log_probs, k, tail=tail).value
        cached = divergence(student.float(), found, k, tail=tail).value
        torch.testing.assert_close(cached.double(), live, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draws", [1, 4])
def test_the_mean_over_draws_is_the_distribution(draws):
    log_probs, _, _ = distributions(1)
    count, target = 4000, int(log_probs.argmin())
    targets = torch.full((count,), target)
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    kept = compress(log_probs.expand(count, V), targets, 4, draws, uniforms)
    mean = expand(kept, targets, V).double().exp().mean(0)
    torch.testing.assert_close(mean, log_probs[0].exp(), rtol=0, atol=1e-4)
    assert target not in kept.drawn


def test_the_gradient_of_the_forward_kl_is_the_full_ones_in_expectation():
    log_probs, _, _ = distributions(1)
    count = 4000
    targets = torch.zeros(count, dtype=torch.long)
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = expand(compress(log_probs.expand(count, V), targets, 4, 2, uniforms), targets, V)
    student = distributions(1, seed=1)[0][0].requires_grad_()
    (full,) = torch.autograd.grad(forward_kl(student, log_probs[0]), student)
    (drawn,) = torch.autograd.grad(forward_kl(student.expand(count, V), found.double()).mean(), student)
    torch.testing.assert_close(drawn, full, rtol=0, atol=1e-4)


def test_draws_are_a_systematic_sample():
    """With m draws a token's count is m times its share, rounded up or down."""
    log_probs, targets, found, kept = round_trip(4, 16)
    for row, target, ids, drawn in zip(log_probs.exp(), targets, kept.tokens, kept.drawn, strict=True):
        rest = row.clone()
        rest[ids] = rest[target] = 0
        shares = 16 * rest / rest.sum()
        counts = torch.bincount(drawn, minlength=V)
        assert bool(((counts - shares).abs() < 1 + 1e-9).all())
    assert found.shape == (50, V)


def test_a_certain_teacher_has_no_rest():
    log_probs = torch.full((2, V), -math.inf)
    log_probs[:, 7] = 0.0
    for draws in (0, 3):
        kept = compress(log_probs, torch.tensor([7, 8]), 1, draws, torch.zeros(2, dtype=torch.float64))
        found = expand(kept, torch.tensor([7, 8]), V)
        assert torch.equal(found, log_probs)
