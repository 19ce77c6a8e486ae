"""How good a student is on held-out data: greedy accuracy, perplexity, and its distance to the teacher on its own text.

The work is split over the ranks by example and only sums are exchanged, so the result is the same for any world size.
``N`` target positions, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from distill import distributed, sharding
from distill.data.base import Dataset
from distill.errors import UserError
from distill.likelihood import surprise
from distill.losses.divergence import forward_kl, log_probs_of_both, reverse_kl
from distill.models.causal_lm import CausalLM, evaluating
from distill.rollouts.decode import Completion, Sampling, generate
from distill.rollouts.on_policy import OnPolicyRollout
from distill.teachers.base import Teacher
from distill.types import Row, Sample, Signal, collate

CHUNK = 1024
"""Positions whose logits exist at once."""

NO_STEP = -1
"""Stands for the optimizer step in the seeds: every evaluation of a run draws the same numbers."""


@dataclass(frozen=True)
class Evaluation:
    """Result over all examples and ranks; equal on every rank.

    ``accuracy`` is the mean verifier score of the greedy completions (None without a verifier), ``mean_length`` their
    mean number of tokens and ``stopped_share`` the share of them that ended by themselves. ``kl`` is the reverse KL
    KL(p_S‖p_T) and ``forward_kl`` KL(p_T‖p_S), in nats, each the mean over all tokens the student sampled at
    temperature 1 (None without a teacher). ``perplexity`` is exp of the mean −log p_S of a token of the completions the
    data have (None where they have none). ``samples`` are greedy rollouts in dataset order: ``prompt``,
    ``completion``, ``answer`` (the dataset's, None without one) and ``score`` (None without a verifier).
    """

    accuracy: float | None
    kl: float | None
    forward_kl: float | None
    perplexity: float | None
    mean_length: float
    stopped_share: float
    samples: list[dict[str, Any]]

    def metrics(self) -> dict[str, float]:
        """What was measured, under the keys of the log."""
        found = {
            "eval/accuracy": self.accuracy,
            "eval/reverse_kl": self.kl,
            "eval/forward_kl": self.forward_kl,
            "eval/perplexity": self.perplexity,
            "eval/length": self.mean_length,
            "eval/stopped": self.stopped_share,
        }
        return {key: value for key, value in found.items() if value is not None}


def evaluate(
    student: CausalLM,
    teacher: Teacher | None,
    dataset: Dataset,
    *,
    max_new_tokens: int,
    batch_size: int,
    limit: int | None = None,
    keep_samples: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluates on the first ``limit`` examples (None: all) and returns ``keep_samples`` of the rollouts (None: all).

    A collective: every rank calls it. ``on_progress`` hears the number of new tokens at each decode step. Raises
    UserError without examples.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count == 0:
        raise UserError("data.eval_size", count, "at least 1")
    samples, counted = share(dataset, count)
    completions = _greedy(student, samples, max_new_tokens, batch_size, on_progress)[:counted]
    records = [_record(student, dataset, *pair) for pair in zip(samples, completions, strict=False)]
    apart = [0.0, 0.0, 0.0]
    if teacher is not None:
        rows = _sampled(student, samples, max_new_tokens, batch_size, on_progress, seed)
        apart = _divergences(student, teacher, _counting(rows, counted), batch_size)
    found = [*_counts(records, completions), *apart, *surprise(student, samples, counted, batch_size)]
    total = distributed.all_sum(torch.tensor(found, dtype=torch.float64))
    score, length, stopped, reverse, forward, positions, nats, tokens = total.tolist()
    return Evaluation(
        accuracy=score / count if dataset.has_verifier else None,
        kl=reverse / positions if teacher is not None else None,
        forward_kl=forward / positions if teacher is not None else None,
        perplexity=_exp(nats / tokens) if tokens > 0 else None,
        mean_length=length / count,
        stopped_share=stopped / count,
        samples=_gather(records, keep_samples),
    )


def _exp(value: float) -> float:
    """Infinite where it is too large for a float."""
    return math.exp(value) if value < 700 else math.inf


def score(
    student: CausalLM,
    teacher: Teacher | None,
    dataset: Dataset,
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> float:
    """One number by which weights can be compared, the larger the better, and no more work than it takes.

    The ``accuracy`` of :func:`evaluate` where the dataset has a verifier, else minus its ``kl``; NaN, on all ranks,
    where one has logits that are not finite. A collective.
    """
    samples, counted = share(dataset, len(dataset))
    if dataset.has_verifier:
        completions = _greedy(student, samples, max_new_tokens, batch_size, on_progress, lenient=True)[:counted]
        records = [_record(student, dataset, *pair) for pair in zip(samples, completions, strict=False)]
        found = _counts(records, completions)[0] if _sound(each.logprobs for each in completions) else math.nan
        return float(distributed.all_sum(torch.tensor(found, dtype=torch.float64))) / len(dataset)
    assert teacher is not None, "without a verifier there is nothing else to ask"
    rows = _sampled(student, samples, max_new_tokens, batch_size, on_progress, seed, lenient=True)
    apart = _divergences(student, teacher, _counting(rows, counted), batch_size)
    if not _sound(row.sampler_logprobs for row in rows[:counted] if row.sampler_logprobs is not None):
        apart[0] = math.nan
    reverse, _, positions = distributed.all_sum(torch.tensor(apart, dtype=torch.float64)).tolist()
    return -float(reverse) / float(positions)


def _greedy(
    student: CausalLM,
    samples: list[Sample],
    max_new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None,
    lenient: bool = False,
) -> list[Completion]:
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens, lenient=lenient)
    prompts = [sample.prompt_ids for sample in samples]
    return generate(student, prompts, greedy, [0] * len(prompts), batch_size, on_progress)


def _sampled(
    student: CausalLM,
    samples: list[Sample],
    max_new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None,
    seed: int,
    lenient: bool = False,
) -> list[Row]:
    sampling = Sampling(max_new_tokens=max_new_tokens, lenient=lenient)
    policy = OnPolicyRollout(student, sampling, seed, batch_size, on_progress)
    return policy(samples, [0] * len(samples), NO_STEP)


def _sound(logprobs: Iterable[Tensor]) -> bool:
    """Whether all that was sampled leniently had a distribution to be sampled from."""
    return all(bool(each.isfinite().all()) for each in logprobs)


def share(dataset: Dataset, count: int) -> tuple[list[Sample], int]:
    """This rank's samples, and how many of them count.

    Models in shards take all ranks in every forward pass, so that each rank has equally many.
    """
    mine = range(distributed.rank(), count, distributed.world_size())
    filled = [*mine, 0][: math.ceil(count / distributed.world_size())]
    return [dataset[index] for index in filled], len(mine)


def _counting(rows: list[Row], count: int) -> list[Row]:
    """The same rows, of which only the first ``count`` have targets."""
    return [*rows[:count], *(replace(row, target_mask=torch.zeros_like(row.target_mask)) for row in rows[count:])]


def _record(lm: CausalLM, dataset: Dataset, sample: Sample, completion: Completion) -> dict[str, Any]:
    text = str(lm.tokenizer.decode(list(completion.ids), skip_special_tokens=True))
    return {
        "prompt": lm.tokenizer.decode(list(sample.prompt_ids)),
        "completion": text,
        "answer": _reference(lm, sample),
        "score": float(dataset.score(sample, text)) if dataset.has_verifier else None,
    }


def _reference(lm: CausalLM, sample: Sample) -> str | None:
    """The completion the dataset gives to the prompt, else what its verifier compares with, as text."""
    if sample.has_completion:
        completion = sample.input_ids[len(sample.prompt_ids) :]
        return str(lm.tokenizer.decode(list(completion), skip_special_tokens=True))
    return None if sample.answer is None else str(sample.answer)


def _counts(records: list[dict[str, Any]], completions: list[Completion]) -> list[float]:
    """Sums over examples: score, tokens, completions that ended by themselves."""
    scores = [record["score"] or 0.0 for record in records]
    lengths = [len(completion.ids) for completion in completions]
    return [sum(scores), sum(lengths), sum(completion.stopped for completion in completions)]


def _divergences(student: CausalLM, teacher: Teacher, rows: list[Row], batch_size: int) -> list[float]:
    """Sums over all targets: reverse KL, forward KL, number of targets."""
    rows = sorted(rows, key=lambda row: len(row.input_ids))
    sums = torch.zeros(3, dtype=torch.float64)
    # A sharded teacher is asked by all ranks together, and none may wait inside DeepSpeed for one that still decodes.
    distributed.barrier()
    with evaluating(student.model):
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size], student.pad_id, window_positions=0, on_policy=True)
            batch = batch.to(next(student.model.parameters()).device)
            both = student.signal(batch), teacher.signal(batch)
            with sharding.gathered([*student.head_parameters, *teacher.head_parameters]):
                sums += _sum_over_positions(*both).cpu()
    return [float(value) for value in sums]


def _sum_over_positions(student: Signal, teacher: Signal) -> Tensor:
    """Two signals of ``N`` positions → float64 ``[3]``: reverse KL, forward KL, N; logits exist chunk by chunk."""
    count = len(student.hidden)
    sums = torch.zeros(3, dtype=torch.float64, device=student.hidden.device)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        both = log_probs_of_both(student.head(student.hidden[chunk]), teacher.head(teacher.hidden[chunk]))
        sums[0] += reverse_kl(*both, normalised=True).double().sum()
        sums[1] += forward_kl(*both, normalised=True).double().sum()
    sums[2] = count
    return sums


def _gather(records: list[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """The first ``count`` records of the dataset, from ranks that each hold every world-size-th one."""
    shares: list[Any] = distributed.gather_objects(records[:count])
    ordered = [record for group in zip_longest(*shares) for record in group if record is not None]
    return ordered[:count]
