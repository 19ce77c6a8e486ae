"""The train loader: one optimizer step at a time, from sample stream to micro-batches with their shared denominator.

For each optimizer step it takes the next prompts of the sample stream, keeps this rank's share, calls the rollout once
for all of them, counts the target tokens over every rank and micro-batch (after generation), and yields the
micro-batches. It is sized and runs in the main process, so Lightning never asks for a batch ahead of the student's
latest update.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from distill import distributed
from distill.data.base import Examples
from distill.data.mixture import order
from distill.types import MicroBatch


class RolloutFunction(Protocol):
    """Turns samples (and the copy number of each) into rows to train on, for one optimizer step."""

    def __call__(self, samples: list[Any], copies: list[int], step: int) -> list[Any]: ...


Collate = Callable[[list[Any], int, bool], MicroBatch]
"""Rows, the targets of their whole optimizer step, and whether the student sampled them → a micro-batch."""


class WindowLoader:
    """Micro-batches of all optimizer steps from ``next_step()`` to ``max_steps``.

    ``batch_size`` counts sequences per optimizer step over all ranks and is divisible by ``samples_per_prompt`` and the
    world size. Its state is the number of prompts consumed, so a resumed run goes on with the next prompt also when its
    batch size or world size has changed.
    """

    def __init__(
        self,
        dataset: Examples,
        rollout: RolloutFunction,
        *,
        seed: int,
        batch_size: int,
        samples_per_prompt: int,
        micro_batch_size: int | None,
        max_steps: int,
        collate: Collate,
        next_step: Callable[[], int],
    ) -> None:
        self.dataset, self.rollout, self.seed = dataset, rollout, seed
        self.max_steps, self.collate, self.next_step = max_steps, collate, next_step
        self.copies = samples_per_prompt
        self.prompts = batch_size // samples_per_prompt
        self.local_rows = batch_size // distributed.world_size()
        self.micro_rows = min(micro_batch_size or self.local_rows, self.local_rows)
        self.consumed = 0

    @property
    def micro_batches(self) -> int:
        """Micro-batches per optimizer step: Lightning's ``accumulate_grad_batches``."""
        return math.ceil(self.local_rows / self.micro_rows)

    def __len__(self) -> int:
        return self.max_steps * self.micro_batches

    def upcoming(self) -> list[Any]:
        """The samples of the next step, of all ranks, each copy but once; asked between steps."""
        return [self.dataset[index] for index in order(self.dataset, self.seed, self.consumed, self.prompts)]

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self.next_step(), self.max_steps):
            start, self.consumed = self.consumed, self.consumed + self.prompts
            yield from self._window(step, order(self.dataset, self.seed, start, self.prompts))

    def _window(self, step: int, prompts: list[int]) -> list[MicroBatch]:
        # A prompt that a small dataset gives twice in one step counts on, so that no two rollouts are the same.
        seen: Counter[int] = Counter()
        drawn = list[tuple[int, int]]()
        for index in (index for index in prompts for _ in range(self.copies)):
            drawn.append((index, seen[index]))
            seen[index] += 1
        first = distributed.rank() * self.local_rows
        mine = drawn[first : first + self.local_rows]
        samples = {index: self.dataset[index] for index, _ in mine}
        rows = self.rollout([samples[index] for index, _ in mine], [copy for _, copy in mine], step)
        rows.sort(key=lambda row: row.length)
        local = sum(row.positions for row in rows)
        positions = int(distributed.all_sum(torch.tensor(local)))
        on_policy = rows[0].sampler_logprobs is not None
        return [
            self.collate(rows[start : start + self.micro_rows], positions, on_policy)
            for start in range(0, len(rows), self.micro_rows)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.consumed = state["consumed"]
