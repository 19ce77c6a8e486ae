from __future__ import annotations

import pytest
import torch

from distill import distributed
from distill.errors import UserError
from distill.rollouts.dataset import DatasetRollout
from distill.rollouts.decode import Sampling, generate
from distill.rollouts.mixed import MixedRollout, is_on_policy
from distill.rollouts.on_policy import OnPolicyRollout
from distill.rollouts.scheduled import ScheduledRollout
from distill.rollouts.seeds import row_seed
from distill.types import Sample


@pytest.fixture
def samples(prompts):
    masks = [(False,) * len(prompt) + (True, True) for prompt in prompts]
    return [
        Sample(10 + i, tuple(prompt), (*prompt, 4, 5), mask)
        for i, (prompt, mask) in enumerate(zip(prompts, masks, strict=True))
    ]


def same(rows, others):
    return [row.input_ids.tolist() for row in rows] == [row.input_ids.tolist() for row in others]


def test_dataset_rows_are_the_ground_truth(samples):
    row, copy = DatasetRollout()([samples[0], samples[0]], [0, 1], step=3)
    assert row.sample_id == 10
    assert row.input_ids.tolist() == list(samples[0].input_ids)
    assert row.input_ids.dtype == torch.int64
    assert row.target_mask.tolist() == list(samples[0].target_mask)
    assert row.sampler_logprobs is None
    assert torch.equal(row.input_ids, copy.input_ids)


def test_a_sample_without_completion_is_refused_by_name():
    with pytest.raises(UserError, match=r"`data\.path` must be a dataset with completions, .* but is 'example 7 with"):
        DatasetRollout()([Sample(7, (1, 2))], [0], step=0)


def test_on_policy_rows_hold_prompt_and_sampled_tokens(make_lm, samples):
    lm, sampling = make_lm((3, 9)), Sampling(max_new_tokens=10)
    rows = OnPolicyRollout(lm, sampling, seed=5, batch_size=4)(samples, [1] * 14, step=2)
    seeds = [row_seed(5, 2, sample.id, 1) for sample in samples]
    expected = generate(lm, [sample.prompt_ids for sample in samples], sampling, seeds)
    for sample, row, completion in zip(samples, rows, expected, strict=True):
        before = len(sample.prompt_ids)
        assert row.sample_id == sample.id
        assert row.input_ids.tolist() == [*sample.prompt_ids, *completion.ids]
        assert row.target_mask.tolist() == [False] * before + [True] * len(completion.ids)
        assert row.stopped == completion.stopped
        torch.testing.assert_close(row.sampler_logprobs[before:], completion.logprobs, atol=2e-5, rtol=1e-5)
        assert (row.sampler_logprobs[:before] == 0).all()
    assert {row.stopped for row in rows} == {True, False}


def test_the_stop_token_is_a_target_even_where_it_is_the_pad_token(make_lm, samples):
    rows = OnPolicyRollout(make_lm((3,), pad=3), Sampling(max_new_tokens=40), seed=0)(samples, [0] * 14, step=0)
    stopped = [row for row in rows if row.stopped]
    assert stopped
    assert all(row.input_ids[-1] == 3 and row.target_mask[-1] for row in stopped)


def test_rows_depend_on_seed_step_sample_and_copy_and_on_nothing_else(make_lm, samples):
    lm, sampling = make_lm(), Sampling(max_new_tokens=10)
    rollout = OnPolicyRollout(lm, sampling, seed=5)
    rows = rollout(samples, [0] * 14, step=2)
    # Two ranks, each with half of the samples and another batch size.
    split = [OnPolicyRollout(lm, sampling, 5, size)(samples[part], [0] * 7, 2) for part, size in PARTS]
    assert same(rows, split[0] + split[1])
    assert not same(rows, rollout(samples, [1] * 14, step=2))
    assert not same(rows, rollout(samples, [0] * 14, step=3))
    assert not same(rows, OnPolicyRollout(lm, sampling, seed=6)(samples, [0] * 14, step=2))


PARTS = ((slice(0, 7), 2), (slice(7, 14), 256))


def test_progress_is_reported_while_decoding(make_lm, samples):
    heard = []
    OnPolicyRollout(make_lm(), Sampling(max_new_tokens=6), seed=0, on_progress=heard.append)(samples, [0] * 14, 0)
    assert heard == [14] * 6


def test_the_branch_is_the_same_on_every_rank(monkeypatch):
    torch.manual_seed(0)
    first = [is_on_policy(0, step, 0.5) for step in range(50)]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    torch.manual_seed(1)
    assert [is_on_policy(0, step, 0.5) for step in range(50)] == first
    assert [is_on_policy(1, step, 0.5) for step in range(50)] != first


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_fraction_is_the_share_of_steps(fraction):
    share = sum(is_on_policy(4, step, fraction) for step in range(3000)) / 3000
    assert share == fraction if fraction in (0, 1) else abs(share - fraction) < 0.03


def test_a_scheduled_rollout_has_the_temperature_of_its_step(make_lm, samples):
    lm = make_lm()

    def make(temperature):
        return OnPolicyRollout(lm, Sampling(temperature, max_new_tokens=6), seed=0)

    scheduled = ScheduledRollout(make, lambda step: [3.0, 0.0][step])
    assert scheduled.on_policy
    for step, temperature in ((0, 3.0), (1, 0.0)):
        found, other = scheduled(samples, [0] * 14, step), make(1.0)(samples, [0] * 14, step)
        assert same(found, make(temperature)(samples, [0] * 14, step))
        assert not same(found, other)


def test_a_mixed_rollout_has_one_kind_of_row_per_step(make_lm, samples):
    sampled = OnPolicyRollout(make_lm(), Sampling(max_new_tokens=2), seed=0)
    mixed = MixedRollout(DatasetRollout(), sampled, seed=0, fraction=lambda step: 0.5)
    kinds = set()
    for step in range(12):
        rows = mixed(samples[:2], [0, 0], step)
        assert mixed.on_policy == is_on_policy(0, step, 0.5)
        assert [row.sampler_logprobs is not None for row in rows] == [mixed.on_policy] * 2
        kinds.add(mixed.on_policy)
    assert kinds == {True, False}
