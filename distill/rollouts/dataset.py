"""Rows are the dataset's own completions."""

from __future__ import annotations

import torch

from distill.errors import UserError
from distill.types import Row, Sample


class DatasetRollout:
    """Ground-truth completions; every copy of a sample is the same row.

    Raises UserError for a sample that has only a prompt.
    """

    on_policy = False

    def __call__(self, samples: list[Sample], copies: list[int], step: int) -> list[Row]:
        return [_row(sample) for sample in samples]


def _row(sample: Sample) -> Row:
    if not sample.has_completion:
        allowed = "a dataset with completions, unless every rollout is on-policy (`recipe=opd`)"
        raise UserError("data.path", f"example {sample.id} with a prompt only", allowed)
    return Row(sample.id, torch.tensor(sample.input_ids), torch.tensor(sample.target_mask), briefing=sample.briefing)
