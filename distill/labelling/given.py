"""The teacher answers the prompts of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from distill.data.base import Dataset
from distill.data.encode import Encoder
from distill.labelling.records import answered, asked, ending, read_again, record, text_of
from distill.models import CausalLM
from distill.rollouts.decode import Completion, Sampling, generate
from distill.rollouts.seeds import row_seed
from distill.types import Sample

STEP = -2
"""Stands for the optimizer step in the seeds; those of rollouts and evaluations are -1 and above."""


@dataclass(frozen=True)
class Given:
    """Draw ``d`` is copy ``d % copies`` of prompt ``d // copies``; a part has ``rows`` of them, decoded at once.

    ``encoder`` reads what was written.
    """

    lm: CausalLM
    data: Dataset
    encoder: Encoder
    sampling: Sampling
    seed: int
    rows: int
    copies: int
    verify: bool

    @property
    def draws(self) -> int:
        return len(self.data) * self.copies

    @property
    def parts(self) -> int:
        return math.ceil(self.draws / self.rows)

    def make(self, number: int) -> list[dict[str, Any]]:
        """The records of a part: a function of the settings and its number."""
        span = range(number * self.rows, min((number + 1) * self.rows, self.draws))
        places = [divmod(draw, self.copies) for draw in span]
        samples = [self.data[index] for index, _ in places]
        seeds = [row_seed(self.seed, STEP, sample.id, copy) for sample, (_, copy) in zip(samples, places, strict=True)]
        completions = generate(self.lm, [sample.prompt_ids for sample in samples], self.sampling, seeds, self.rows)
        return [
            self._record(sample, place, completion)
            for sample, place, completion in zip(samples, places, completions, strict=True)
        ]

    def _record(self, sample: Sample, place: tuple[int, int], completion: Completion) -> dict[str, Any]:
        index, copy = place
        text = text_of(self.lm, completion)
        row = answered(asked(self.data.row(index)), text) | {"id": sample.id, "copy": copy}
        dropped, exact = ending(completion, text), False
        if dropped is None:
            ids = read_again(row, self.encoder)
            exact = ids == (*sample.prompt_ids, *completion.ids)
            dropped = "unreadable" if ids is None else None
        if dropped is None and self.verify and self.data.score(sample, text) < 1:
            dropped = "wrong"
        return record(row, dropped, len(completion.ids), exact, verified=self.verify)
