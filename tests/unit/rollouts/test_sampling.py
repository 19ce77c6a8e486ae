from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distill.errors import RunError, UserError
from distill.rollouts.sampling import Sampling, sample

LOGITS = torch.tensor([1.0, 3.0, -2.0, 0.5, 2.9, 0.0, 2.0, -1.0, 1.5, 0.2])


def draw(logits, sampling, count=20_000):
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sample(logits.expand(count, -1), sampling, uniform)[0]


def chi_squared(tokens, expected):
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    wanted = (expected * len(tokens))[expected > 0].double()
    return float(((counts[expected > 0] - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_match_the_softmax(temperature):
    tokens = draw(LOGITS, Sampling(temperature=temperature))
    assert chi_squared(tokens, (LOGITS / temperature).softmax(-1)) < 27.9  # 0.999 quantile at 9 degrees of freedom


def test_a_wrong_temperature_fails_the_same_test():
    assert chi_squared(draw(LOGITS, Sampling()), (LOGITS / 1.2).softmax(-1)) > 27.9


def test_top_k_renormalises_the_k_likeliest():
    expected = torch.zeros(10).index_copy(0, torch.tensor([1, 4, 6]), LOGITS[[1, 4, 6]].softmax(-1))
    assert chi_squared(draw(LOGITS, Sampling(top_k=3)), expected) < 13.8  # 2 degrees of freedom


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probs = LOGITS.softmax(-1)
    ordered = probs.sort(descending=True)
    inside = float(ordered.values[:2].sum())
    for top_p, size in ((inside - 1e-3, 2), (inside + 1e-3, 3), (1e-9, 1)):
        kept = ordered.indices[:size]
        expected = torch.zeros(10).index_copy(0, kept, probs[kept] / probs[kept].sum())
        assert chi_squared(draw(LOGITS, Sampling(top_p=top_p)), expected) < 13.8


def test_top_p_counts_within_top_k_and_after_temperature():
    logits = torch.tensor([2.0, 1.0, 0.9, -5.0])
    # At temperature 0.5 the three kept have shares .82, .11, .09: the first alone reaches 0.8.
    assert set(draw(logits, Sampling(temperature=0.5, top_k=3, top_p=0.79), 2000).tolist()) == {0}
    assert set(draw(logits, Sampling(top_k=3, top_p=0.79), 2000).tolist()) == {0, 1}
    assert set(draw(logits, Sampling(top_k=2, top_p=0.72), 2000).tolist()) == {0}


@pytest.mark.parametrize("top_k", [10, 11, 10_000])
def test_top_k_of_the_vocabulary_or_more_is_off(top_k):
    assert torch.equal(draw(LOGITS, Sampling(top_k=top_k)), draw(LOGITS, Sampling()))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.999), Sampling(top_k=4)])
def test_extreme_numbers_never_pick_a_token_without_probability(sampling):
    impossible = -float("inf")
    logits = torch.tensor([[impossible, 1.0, impossible, 2.0, impossible]]).repeat(2, 1)
    uniform = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    tokens, logprobs = sample(logits, sampling, uniform)
    assert set(tokens.tolist()) == {1, 3}
    assert logprobs.isfinite().all()


def test_a_sum_of_probabilities_above_one_cannot_run_off_the_end():
    logits = torch.randn(500, 60, generator=torch.Generator().manual_seed(0))
    assert (logits.softmax(-1).double().sum(-1) > 1).any()
    uniform = torch.full((500,), 1 - 2.0**-53, dtype=torch.float64)
    assert (sample(logits, Sampling(), uniform)[0] == 59).all()


def test_a_certain_token_is_always_drawn():
    logits = torch.full((3, 50), -200.0)
    logits[:, 17] = 0.0
    uniform = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert sample(logits, Sampling(), uniform)[0].tolist() == [17, 17, 17]


def test_temperature_zero_is_the_argmax_and_first_of_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 2.0, 2.0]])
    uniform = torch.tensor([0.99, 0.99], dtype=torch.float64)
    assert sample(logits, Sampling(temperature=0.0), uniform)[0].tolist() == [1, 0]


def test_truncation_breaks_ties_by_token_id():
    assert set(draw(torch.zeros(100), Sampling(top_k=3), 500).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.5), Sampling(top_k=3), Sampling(temperature=2.0, top_k=4, top_p=0.9)]
)
def test_logprobs_are_those_of_the_distribution_drawn_from(sampling):
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, logprobs = sample(LOGITS.repeat(len(uniform), 1), sampling, uniform)
    assert logprobs.dtype == torch.float32
    for token in tokens.unique():
        said = logprobs[tokens == token]
        assert said.unique().numel() == 1
        assert said[0].exp().item() == pytest.approx((tokens == token).double().mean().item(), abs=1e-4)


def test_an_importance_ratio_undoes_temperature():
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, logprobs = sample(LOGITS.repeat(len(uniform), 1), Sampling(temperature=2.0), uniform)
    policy = LOGITS.log_softmax(-1)
    surprise = -policy[tokens]
    expected = torch.special.entr(policy.exp()).sum()
    ratio = (policy[tokens] - logprobs).exp()
    assert (ratio * surprise).mean().item() == pytest.approx(expected.item(), abs=1e-3)
    assert surprise.mean().item() != pytest.approx(expected.item(), abs=1e-2)


def test_a_greedy_token_was_certain():
    uniform = torch.zeros(1, dtype=torch.float64)
    assert sample(LOGITS[None], Sampling(temperature=0.0), uniform)[1].tolist() == [0.0]


def test_bfloat16_logits_are_normalised_in_fp32():
    logits = LOGITS.bfloat16()[None]
    tokens, logprobs = sample(logits, Sampling(), torch.tensor([0.3], dtype=torch.float64))
    torch.testing.assert_close(logprobs, logits.float().log_softmax(-1)[0, tokens])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.5)])
def test_logits_that_are_not_finite_raise(bad, sampling):
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with pytest.raises(RunError, match="not finite"):
        sample(logits, sampling, torch.zeros(2, dtype=torch.float64))
    tokens, logprobs = sample(logits, replace(sampling, lenient=True), torch.zeros(2, dtype=torch.float64))
    alone = sample(logits[:1], sampling, torch.zeros(1, dtype=torch.float64))
    assert (tokens[:1], logprobs[:1]) == alone
    assert tokens[1] < 5
    assert logprobs[1].isnan()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_new_tokens", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(UserError, match=rf"`rollout\.{key}` must be"):
        Sampling(**{key: value})
