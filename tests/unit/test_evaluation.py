from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill import distributed, evaluation
from distill.errors import UserError
from distill.evaluation import evaluate, score
from distill.rollouts.decode import Sampling, generate
from distill.rollouts.seeds import row_seed
from distill.teachers.frozen import FrozenTeacher
from distill.types import Sample, Signal

EOS = 2


class Tokenizer:
    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i == EOS))


class LM:
    """A tiny random Llama."""

    vocab_size, eos_ids, pad_id, max_positions, tokenizer = 32, frozenset({EOS}), 0, None, Tokenizer()
    name = "student"
    head_parameters = ()

    def __init__(self, seed, dropout=0.0):
        torch.manual_seed(seed)
        options = {
            "num_key_value_heads": 2,
            "vocab_size": 32,
            "hidden_size": 32,
            "intermediate_size": 64,
            "initializer_range": 0.3,
        }
        config = LlamaConfig(num_hidden_layers=2, num_attention_heads=4, attention_dropout=dropout, **options)
        self.model = LlamaForCausalLM(config)

    def head(self, hidden):
        return self.model.lm_head(hidden)

    def hidden(self, input_ids, attention_mask):
        return self.model.model(input_ids, attention_mask.long()).last_hidden_state

    def signal(self, batch):
        return Signal(batch.select(self.hidden(batch.input_ids, batch.attention_mask)), self.head)


class Questions:
    has_verifier = True

    def __init__(self, answers=None, size=7):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, 9, (size,), generator=generator).tolist()
        prompts = [tuple(torch.randint(3, 32, (length,), generator=generator).tolist()) for length in lengths]
        answers = answers or [None] * size
        self.samples = [Sample(i, prompt, answer=answers[i]) for i, prompt in enumerate(prompts)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    def score(self, sample, text):
        return float(text == sample.answer)


@pytest.fixture
def student():
    return LM(0)


@pytest.fixture
def teacher():
    return FrozenTeacher(LM(1))


OPTIONS = {"max_new_tokens": 24, "batch_size": 3}


def greedy(student, dataset):
    prompts = [sample.prompt_ids for sample in dataset.samples]
    return generate(student, prompts, Sampling(temperature=0.0, max_new_tokens=24), [0] * len(prompts))


def right_answers(student):
    return [LM.tokenizer.decode(row.ids, skip_special_tokens=True) for row in greedy(student, Questions())]


def test_accuracy_is_the_share_of_greedy_answers_the_verifier_accepts(student):
    answers = right_answers(student)
    assert evaluate(student, None, Questions(answers), **OPTIONS).accuracy == 1
    answers[1] = answers[4] = "wrong"
    result = evaluate(student, None, Questions(answers), **OPTIONS)
    assert result.accuracy == pytest.approx(5 / 7)
    assert [sample["score"] for sample in result.samples] == [1, 0, 1, 1, 0, 1, 1]
    assert [sample["answer"] for sample in result.samples] == answers
    assert result.samples[1]["completion"] == right_answers(student)[1]
    assert result.samples[2]["prompt"] == LM.tokenizer.decode(Questions().samples[2].prompt_ids)


def test_lengths_and_stops_are_those_of_the_greedy_rollouts(student):
    rows = greedy(student, Questions())
    result = evaluate(student, None, Questions(), **OPTIONS)
    assert result.mean_length == pytest.approx(sum(len(row.ids) for row in rows) / 7)
    assert result.stopped_share == pytest.approx(sum(row.stopped for row in rows) / 7)
    assert 0 < result.stopped_share < 1


def test_kl_is_the_mean_per_token_on_sampled_rollouts(student, teacher):
    result = evaluate(student, teacher, Questions(), seed=5, **OPTIONS)
    reverse, forward, count = 0.0, 0.0, 0
    for sample in Questions().samples:
        seeds = [row_seed(5, evaluation.NO_STEP, sample.id, 0)]
        (row,) = generate(student, [sample.prompt_ids], Sampling(max_new_tokens=24), seeds)
        ids = torch.tensor([[*sample.prompt_ids, *row.ids]])
        with torch.no_grad():
            logs = [lm.model.eval()(ids).logits[0, len(sample.prompt_ids) - 1 : -1] for lm in (student, teacher.lm)]
        p, q = (logits.double().log_softmax(-1) for logits in logs)
        reverse += float((p.exp() * (p - q)).sum())
        forward += float((q.exp() * (q - p)).sum())
        count += len(row.ids)
    assert result.kl == pytest.approx(reverse / count, rel=1e-4)
    assert result.forward_kl == pytest.approx(forward / count, rel=1e-4)


def test_kl_to_oneself_is_zero(student):
    result = evaluate(student, FrozenTeacher(copy.deepcopy(student)), Questions(), **OPTIONS)
    assert result.kl == pytest.approx(0, abs=1e-6)
    assert result.forward_kl == pytest.approx(0, abs=1e-6)


def test_chunks_and_batches_leave_the_result_alone(student, teacher, monkeypatch):
    whole = evaluate(student, teacher, Questions(), max_new_tokens=24, batch_size=100)
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    parts = evaluate(student, teacher, Questions(), max_new_tokens=24, batch_size=2)
    assert parts.metrics() == pytest.approx(whole.metrics(), rel=1e-5)
    assert parts.samples == whole.samples


@pytest.mark.parametrize("verified", [True, False])
def test_the_score_is_the_accuracy_or_minus_the_distance_and_costs_no_more(student, teacher, verified):
    dataset = Questions(right_answers(student)[:5] + ["wrong"] * 2)
    dataset.has_verifier = verified
    heard = [], []
    whole = evaluate(student, teacher, dataset, seed=5, on_progress=heard[0].append, **OPTIONS)
    found = score(student, teacher, dataset, seed=5, on_progress=heard[1].append, **OPTIONS)
    assert found == (whole.accuracy if verified else -whole.kl)
    assert 0 < sum(heard[1]) < sum(heard[0])


@pytest.mark.parametrize("ranks", [2, 3, 9])
@pytest.mark.parametrize("answered", [False, True])
def test_the_result_is_the_same_for_any_world_size(student, teacher, monkeypatch, ranks, answered):
    dataset = Answered() if answered else Questions(right_answers(student)[:5] + ["wrong"] * 2)
    alone = evaluate(student, teacher, dataset, keep_samples=4, **OPTIONS)
    sums, records = {}, {}
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    # First each rank tells its share (plus 1: a rank without examples may divide by nothing), then all share the total.
    monkeypatch.setattr(distributed, "all_sum", lambda value: sums.setdefault(distributed.rank(), value) + 1)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [records.setdefault(distributed.rank(), value)])

    def run(rank):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        return evaluate(student, teacher, dataset, keep_samples=4, **OPTIONS)

    for rank in range(ranks):
        run(rank)
    monkeypatch.setattr(distributed, "all_sum", lambda value: sum(sums.values()))
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [records[rank] for rank in range(ranks)])
    together = run(ranks - 1)
    assert together.metrics() == pytest.approx(alone.metrics(), rel=1e-6)
    assert together.samples == alone.samples


def test_what_cannot_be_measured_is_left_out(student):
    dataset = Questions()
    dataset.has_verifier = False
    result = evaluate(student, None, dataset, **OPTIONS)
    assert (result.accuracy, result.kl, result.forward_kl) == (None, None, None)
    assert result.samples[0]["score"] is None
    assert set(result.metrics()) == {"eval/length", "eval/stopped"}


class Answered(Questions):
    """Every question but the last has a completion, of which the first token is given."""

    def __init__(self, size=7):
        super().__init__(size=size)
        for index, sample in enumerate(self.samples[:-1]):
            ids = (*sample.prompt_ids, *range(4, 7 + index))
            mask = [place > len(sample.prompt_ids) for place in range(len(ids))]
            self.samples[index] = replace(sample, input_ids=ids, target_mask=tuple(mask))


def test_perplexity_is_that_of_the_completions_token_by_token(student):
    nats = []
    for sample in Answered().samples[:-1]:
        ids = torch.tensor(sample.input_ids)
        with torch.no_grad():
            logits = student.model(ids[None]).logits[0].double()
        each = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        nats += each[torch.tensor(sample.target_mask)[1:]].tolist()
    found = evaluate(student, None, Answered(), **OPTIONS)
    assert found.metrics()["eval/perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-6)
    assert found.perplexity == pytest.approx(
        evaluate(student, None, Answered(), **OPTIONS | {"batch_size": 7}).perplexity
    )


@pytest.mark.parametrize("verified", [True, False])
def test_the_score_of_logits_that_are_not_finite_is_no_number_on_any_rank(student, teacher, verified, monkeypatch):
    dataset = Questions()
    dataset.has_verifier = verified
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    broken = copy.deepcopy(student)
    broken.model.model.embed_tokens.weight.data[dataset[6].prompt_ids[-1]] = math.inf
    sums, add = [], distributed.all_sum
    monkeypatch.setattr(distributed, "all_sum", lambda value: sums.append(value) or add(value))
    for rank, lm in ((0, student), (1, student), (0, broken)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        score(lm, teacher, dataset, **OPTIONS)
    # Ranks add up, so that all hear of it.
    assert [bool(value.isnan().any()) for value in sums] == [False, False, True]


def test_hopeless_perplexity_is_infinite_and_no_error(student):
    with torch.no_grad():
        student.model.lm_head.weight.mul_(1e5)
    assert evaluate(student, None, Answered(), **OPTIONS).perplexity == math.inf


def test_all_keys_of_a_full_evaluation(student, teacher):
    keys = {"accuracy", "reverse_kl", "forward_kl", "length", "stopped"}
    assert set(evaluate(student, teacher, Questions(), **OPTIONS).metrics()) == {f"eval/{key}" for key in keys}


def test_limit_and_kept_samples_take_the_first_examples(student):
    result = evaluate(student, None, Questions(), limit=4, keep_samples=2, **OPTIONS)
    assert result.mean_length == pytest.approx(sum(len(row.ids) for row in greedy(student, Questions())[:4]) / 4)
    assert [sample["prompt"] for sample in result.samples] == [
        LM.tokenizer.decode(sample.prompt_ids) for sample in Questions().samples[:2]
    ]
    assert evaluate(student, None, Questions(), limit=4, keep_samples=0, **OPTIONS).samples == []


def test_dropout_is_off(student, teacher):
    dropping = LM(0, dropout=0.5)
    dropping.model.train()
    expected = evaluate(student, teacher, Questions(), **OPTIONS).metrics()
    assert evaluate(dropping, teacher, Questions(), **OPTIONS).metrics() == pytest.approx(expected)


def test_the_answer_shown_is_the_reference_completion(student):
    dataset = Questions()
    dataset.samples = [
        Sample(0, (5, 6), (5, 6, 7, 8, EOS), (False, False, True, True, True), answer={"not": "text"}),
        Sample(1, (5, 6), answer=12),
        Sample(2, (5, 6)),
        # Of a conversation, what the prompt shows already is no part of the answer to it.
        Sample(3, (5, 9, 6), (5, 9, 6, 8, EOS), (False, True, False, True, True)),
    ]
    shown = [sample["answer"] for sample in evaluate(student, None, dataset, **OPTIONS).samples]
    assert shown == ["7 8", "12", None, "8"]


def test_training_mode_comes_back_and_progress_is_heard(student, teacher):
    heard = []
    student.model.train()
    evaluate(student, teacher, Questions(), on_progress=heard.append, **OPTIONS)
    assert all(module.training for module in student.model.modules())
    assert all(parameter.grad is None for parameter in student.model.parameters())
    assert sum(heard) > sum(len(row.ids) for row in greedy(student, Questions()))


def test_nothing_to_evaluate_on_is_refused(student):
    with pytest.raises(UserError, match=r"`data\.eval_size` must be at least 1, but is 0"):
        evaluate(student, None, Questions(size=0), **OPTIONS)
