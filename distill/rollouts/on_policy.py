"""Rows are sampled from the student as it is now."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from distill.models.causal_lm import CausalLM
from distill.rollouts.decode import Completion, Sampling, generate
from distill.rollouts.seeds import row_seed
from distill.types import Row, Sample


class OnPolicyRollout:
    """Continues the samples' prompts; a row is a function of the weights and (seed, step, sample, copy).

    ``on_progress`` hears of new tokens while they are decoded; ``context`` surrounds the decoding (autocast, weights
    gathered from their shards).
    """

    on_policy = True

    def __init__(
        self,
        lm: CausalLM,
        sampling: Sampling,
        seed: int,
        batch_size: int = 256,
        on_progress: Callable[[int], None] | None = None,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.lm, self.sampling, self.seed, self.context = lm, sampling, seed, context
        self.batch_size, self.on_progress = batch_size, on_progress

    def __call__(self, samples: list[Sample], copies: list[int], step: int) -> list[Row]:
        seeds = [row_seed(self.seed, step, sample.id, copy) for sample, copy in zip(samples, copies, strict=True)]
        prompts = [sample.prompt_ids for sample in samples]
        with self.context():
            completions = generate(self.lm, prompts, self.sampling, seeds, self.batch_size, self.on_progress)
        return [completed(sample, completion) for sample, completion in zip(samples, completions, strict=True)]


def completed(sample: Sample, completion: Completion) -> Row:
    """Prompt and completion as one row, whose targets are the sampled tokens, by count rather than by value."""
    before = len(sample.prompt_ids)
    input_ids = torch.tensor([*sample.prompt_ids, *completion.ids])
    target_mask = torch.arange(len(input_ids)) >= before
    logprobs = torch.cat([completion.logprobs.new_zeros(before), completion.logprobs])
    return Row(sample.id, input_ids, target_mask, logprobs, completion.stopped, briefing=sample.briefing)
