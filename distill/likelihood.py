"""How likely a student finds the held-out completions, which needs neither a verifier nor a rollout."""

from __future__ import annotations

import torch

from distill import sharding
from distill.models.causal_lm import CausalLM, evaluating
from distill.objective import Objective
from distill.types import Row, Sample, collate

CROSS_ENTROPY = Objective(label_weight=1.0, logit_weight=0.0, chunk_size=1024)


def surprise(student: CausalLM, samples: list[Sample], counted: int, batch_size: int) -> list[float]:
    """Sums over the target tokens of the first ``counted`` samples: −log p in nats, number of tokens.

    Samples without a completion, and those that do not count, have no targets, but pass through the model: a model in
    shards takes equally many passes of every rank.
    """
    rows = [row(sample, counts=place < counted) for place, sample in enumerate(samples)]
    rows.sort(key=lambda row: len(row.input_ids))
    nats, tokens = 0.0, 0
    with evaluating(student.model):
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size], student.pad_id, window_positions=0, on_policy=False)
            batch = batch.to(next(student.model.parameters()).device)
            signal = student.signal(batch)
            with sharding.gathered(student.head_parameters):
                _, sums = CROSS_ENTROPY(signal, batch.targets, None, None)
            nats += float(sums["ce"])
            tokens += len(batch.targets)
    return [nats, float(tokens)]


def row(sample: Sample, counts: bool) -> Row:
    """A sample as data to be read, whose completion is the target if there is one and it ``counts``."""
    ids = torch.tensor(sample.input_ids if sample.has_completion else sample.prompt_ids)
    mask = torch.tensor(sample.target_mask) if sample.has_completion and counts else torch.zeros(len(ids)).bool()
    return Row(sample.id, ids, mask)
