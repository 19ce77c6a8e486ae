"""Speculative rollouts: the invariants of arXiv 2410.11325, ragged rows, and what the rows carry."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from distill import training
from distill.errors import RunError, UserError
from distill.rollouts.decode import Sampling, generate
from distill.rollouts.speculative import Draft, Speculation, SpeculativeRollout, speculate
from distill.teachers.frozen import FrozenTeacher
from distill.types import Sample, collate
from tests import tiny

STUDENT, TEACHER = Sampling(1.0, max_new_tokens=12), Sampling(0.5, 0.9)
PROMPTS = [[3, 4, 5], [1], [7, 2, 2, 9, 10, 3], [5, 5], [8, 8, 8, 1]] * 3
SEEDS = list(range(len(PROMPTS)))


@pytest.fixture
def models():
    """A student and a teacher whose weights have nothing to do with each other."""
    lm, teacher = training.build_models(tiny.config("opd"))
    torch.manual_seed(0)
    for model in (lm.model, teacher.lm.model):
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
    return lm, teacher.lm


def drafts(models, draft=5, top_k=3, student=STUDENT, teacher=TEACHER, prompts=PROMPTS, seeds=SEEDS, **options):
    return speculate(*models, prompts, Speculation(student, teacher, draft, top_k), seeds, **options)


def texts(found):
    return [(tuple(draft.ids), tuple(draft.replaced)) for draft in found]


def test_with_all_tokens_accepted_it_is_the_students_own_sampling(models):
    for sampling in (STUDENT, replace(STUDENT, temperature=0.5, top_p=0.5)):
        found = drafts(models, top_k=models[0].vocab_size, student=sampling)
        assert [tuple(draft.ids) for draft in found] == [
            each.ids for each in generate(models[0], PROMPTS, sampling, SEEDS)
        ]
        assert not any(any(draft.replaced) for draft in found)
        assert [draft.calls for draft in found] == [-(-len(draft.ids) // 5) for draft in found]


def test_a_teacher_that_is_the_student_rejects_nothing_once_k_covers_the_nucleus(models):
    lm, _ = models
    nucleus = replace(STUDENT, top_k=4)
    assert not any(any(draft.replaced) for draft in drafts((lm, lm), top_k=4, student=nucleus))
    assert any(any(draft.replaced) for draft in drafts((lm, lm), top_k=1, student=nucleus))


def test_with_k_of_one_every_token_is_the_teachers_favourite_or_its_own_draw(models):
    _, teacher = models
    for draft in drafts(models, top_k=1, teacher=Sampling(0.0)):
        logits = teacher.head(draft.states)
        assert draft.ids == logits.argmax(-1).tolist(), "its own draws are greedy here"
    own, all_of_them = 0, 0
    for draft in drafts(models, top_k=1):
        for token, replaced, favourite in zip(
            draft.ids, draft.replaced, teacher.head(draft.states).argmax(-1), strict=True
        ):
            assert replaced or token == favourite
            own, all_of_them = own + replaced, all_of_them + 1
    assert 0 < own < all_of_them


@pytest.mark.parametrize("draft", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_blocks_of_any_length_give_the_same_tokens(models, draft, top_k):
    found, expected = drafts(models, draft, top_k), drafts(models, 5, top_k)
    assert texts(found) == texts(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.states, other.states, atol=1e-5, rtol=1e-4)


def test_tokens_are_distributed_as_token_by_token(models):
    """χ² of the first two tokens against the probabilities of the definition, which are computed without a cache."""
    lm, teacher = models
    prompt, count, top_k = [3, 4], 4000, 2
    found = drafts(
        models, 2, top_k, prompts=[prompt] * count, seeds=list(range(count)), student=replace(STUDENT, max_new_tokens=2)
    )
    seen = Counter(tuple(draft.ids) for draft in found)
    expected = {}
    for first, chance in enumerate(step(lm, teacher, prompt, top_k)):
        if first in lm.eos_ids:
            expected[first,] = chance
        else:
            expected |= {
                (first, second): chance * p for second, p in enumerate(step(lm, teacher, [*prompt, first], top_k))
            }
    assert sum(expected.values()) == pytest.approx(1)
    assert all(expected[pair] > 0 for pair in seen)
    common = {pair: count * p for pair, p in expected.items() if count * p >= 5}
    rest = count - sum(common.values())
    statistic = sum((seen[pair] - mean) ** 2 / mean for pair, mean in common.items())
    statistic += (count - sum(seen[pair] for pair in common) - rest) ** 2 / rest if rest > 1 else 0
    # Mean k, standard deviation √(2k): this bound is 4.5 deviations away.
    assert statistic < len(common) + 4.5 * (2 * len(common)) ** 0.5
    wrong = {pair: count / len(common) for pair in common}
    assert sum((seen[pair] - mean) ** 2 / mean for pair, mean in wrong.items()) > 10 * statistic, (
        "the bound means something"
    )


def step(lm, teacher, ids, top_k):
    """The distribution of one token, by its definition: accepted from the student, or else drawn by the teacher."""
    student, judge = (
        model.head(model.hidden(torch.tensor([ids]), torch.ones(1, len(ids)))[0, -1]).double()
        for model in (lm, teacher)
    )
    proposed, accepted = student.softmax(-1), torch.zeros_like(student)
    accepted[judge.topk(top_k).indices] = 1
    own = (judge / TEACHER.temperature).softmax(-1)
    order = own.argsort(descending=True)
    kept = own[order].cumsum(0) - own[order] < TEACHER.top_p
    own = torch.zeros_like(own).scatter(0, order[kept], own[order[kept]])
    rejected = (proposed * (1 - accepted)).sum()
    return (proposed * accepted + rejected * own / own.sum()).tolist()


def test_a_row_does_not_depend_on_the_others(models):
    together = texts(drafts(models))
    assert texts(drafts(models, batch_size=4)) == together
    alone = [
        texts(drafts(models, prompts=[prompt], seeds=[seed]))[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    assert alone == together
    assert texts(drafts(models, seeds=[seed + 1 for seed in SEEDS])) != together


def test_states_are_those_of_the_teachers_own_pass(models):
    _, teacher = models
    samples = [Sample(index, tuple(prompt)) for index, prompt in enumerate(PROMPTS)]
    rows = SpeculativeRollout(*models, Speculation(STUDENT, TEACHER, 3, 3), seed=1)(samples, [0] * len(samples), step=0)
    batch = collate(rows, 0, sum(int(row.target_mask.sum()) for row in rows), on_policy=False)
    kept = FrozenTeacher(teacher).signal(batch)
    assert kept.hidden is batch.teacher_states
    asked = FrozenTeacher(teacher).signal(replace(batch, teacher_states=None))
    torch.testing.assert_close(kept.hidden, asked.hidden, atol=1e-5, rtol=1e-4)
    assert kept.hidden.shape[0] == len(batch.targets) == batch.counts["accepted"] + batch.counts["replaced"]
    assert batch.counts["replaced"] > 0
    assert not batch.on_policy
    assert batch.sampler_logprobs is None


def test_few_calls_of_the_teacher_where_most_proposals_are_accepted(models):
    lm, _ = models
    long = replace(STUDENT, max_new_tokens=40)
    found = [draft for draft in drafts((lm, lm), draft=4, top_k=14, student=long) if len(draft.ids) == 40]
    tokens, replaced = sum(len(draft.ids) for draft in found), sum(sum(draft.replaced) for draft in found)
    assert replaced / tokens <= 0.2, "the premise: at least 0.8 are accepted"
    assert sum(draft.calls for draft in found) / tokens <= 0.40


def test_calls_are_blocks_and_every_block_but_full_ones_ends_in_a_replaced_token(models):
    for draft in drafts(models, draft=4):
        blocks, size = 0, 0
        for replaced in draft.replaced:
            size += 1
            if replaced or size == 4:
                blocks, size = blocks + 1, 0
        assert draft.calls == blocks + (size > 0)


def test_the_stop_token_ends_a_row_whoever_wrote_it_and_nothing_follows(models):
    lm, _ = models
    found = drafts(models)
    assert {draft.stopped for draft in found} == {True, False}
    for draft in found:
        assert draft.stopped == (draft.ids[-1] in lm.eos_ids)
        assert not any(token in lm.eos_ids for token in draft.ids[:-1])
        assert len(draft.ids) == len(draft.replaced) == len(draft.states) <= 12


def test_prompts_near_the_end_of_the_context_get_what_is_left(models):
    prompts = [[4] * 60, [4] * 63, [4, 4]]
    found = drafts(models, prompts=prompts, seeds=[0, 1, 2])
    assert [len(draft.ids) <= room for draft, room in zip(found, (4, 1, 12), strict=True)] == [True] * 3
    alone = drafts(models, prompts=prompts[2:], seeds=[2])
    assert texts(found)[2] == texts(alone)[0]
    with pytest.raises(UserError, match="shorter than the model's context"):
        drafts(models, prompts=[[4] * 64], seeds=[0])


@pytest.mark.parametrize("top_k", [1, 4, 100])
def test_what_the_teacher_has_masked_is_never_accepted(models, top_k):
    """Where it allows three tokens, all others are as likely as the fourth."""
    lm, teacher = models
    allowed, head = torch.tensor([3, 5, min(lm.eos_ids)]), teacher.head
    teacher.head = lambda states: torch.full_like(head(states), -torch.inf).index_copy(
        -1, allowed, head(states)[..., allowed]
    )
    found = drafts(models, top_k=top_k)
    assert {token for draft in found for token in draft.ids} <= set(allowed.tolist())
    assert any(all(draft.replaced) for draft in found)
    if top_k > 1:
        assert not all(all(draft.replaced) for draft in found), "what it allows is accepted"


def test_a_teacher_of_nan_is_named(models):
    next(iter(models[1].model.parameters())).data.fill_(float("nan"))
    with pytest.raises(RunError, match="teacher's logits are not finite"):
        drafts(models)


CONVOLUTIONS = tiny.llama(16) | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}
RECURRENT = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}


@pytest.mark.parametrize("config", [CONVOLUTIONS, RECURRENT])
def test_models_that_keep_a_state_are_refused(models, config):
    _, teacher = training.build_models(tiny.config("opd", teacher__config=config))
    kind = config["model_type"]
    with pytest.raises(UserError, match=rf"`teacher\.path` must be a type of model whose cache .* but is '{kind}'"):
        drafts((models[0], teacher.lm))
    with pytest.raises(UserError, match=rf"`student\.path` must be .* but is '{kind}'"):
        drafts((teacher.lm, models[1]))


def test_a_sliding_window_is_that_of_a_plain_rollout():
    config = tiny.llama(8) | {"model_type": "mistral", "sliding_window": 4}
    lm, teacher = training.build_models(tiny.config("opd", student__config=config, teacher__config=config))
    torch.manual_seed(1)
    for model in (lm.model, teacher.lm.model):
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
    found = drafts((lm, teacher.lm), top_k=lm.vocab_size)
    assert [tuple(draft.ids) for draft in found] == [each.ids for each in generate(lm, PROMPTS, STUDENT, SEEDS)]
    assert texts(drafts((lm, teacher.lm), 1)) == texts(drafts((lm, teacher.lm), 5))


def test_the_teachers_own_end_of_sequence_ends_a_row_where_it_wrote_it(models):
    lm, teacher = models
    before = drafts(models)
    token = next(token for draft in before for token, own in zip(draft.ids[:-1], draft.replaced, strict=False) if own)
    teacher.eos_ids = frozenset({token})
    found = drafts(models)
    assert any(draft.stopped and draft.ids[-1] == token and draft.replaced[-1] for draft in found)
    for draft in found:
        assert not any(own and each == token for each, own in zip(draft.ids[:-1], draft.replaced, strict=False))
        assert draft.stopped == (draft.ids[-1] in lm.eos_ids or (draft.ids[-1] == token and draft.replaced[-1]))


@pytest.mark.parametrize(("options", "key"), [({"draft": 0}, "draft_length"), ({"top_k": 0}, "accept_top_k")])
def test_bad_options_are_refused(models, options, key):
    with pytest.raises(UserError, match=rf"`rollout\.{key}` must be at least 1"):
        drafts(models, **options)


def test_a_draft_keeps_what_fits(models):
    draft = Draft([1], seed=0, room=3)
    draft.extend([5, 6], False, torch.zeros(2, 4), (frozenset(), frozenset()))
    draft.extend([7, 8], True, torch.ones(2, 4), (frozenset(), frozenset()))
    assert (draft.ids, draft.replaced) == ([5, 6, 7], [False] * 3), "the replaced token came after the room was full"
    assert draft.states.shape == (3, 4)
    assert draft.ended
