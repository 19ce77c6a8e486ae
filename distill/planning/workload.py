"""How much a run has to do: sequences, tokens and positions of its optimizer steps, read from its data.

``P`` tokens of the longest prompt, ``T`` of the longest row, ``N`` target positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from distill import data, schedule
from distill.data.base import Dataset
from distill.data.briefing import Needs
from distill.data.mixture import order

LOOKED_AT = 2048
"""Samples whose lengths are read: the first ones of the run's own order."""


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens. ``rows`` are those of one rank and step, ``micro_rows`` those of its forward passes.

    ``completion`` is that of the longest row, as is ``length``; ``mean_length`` is over all rows. ``new_tokens`` is
    what a rollout may have, in the mean over the prompts, as the model's positions end it too. ``told`` is what the
    teacher reads beyond the student's sequence.
    """

    rows: int
    micro_rows: int
    prompt: int
    length: int
    completion: int
    mean_length: float
    new_tokens: float
    eval_rows: int
    eval_prompt: int
    steps: int
    samples: int
    told: int = 0

    @property
    def micro_batches(self) -> int:
        return math.ceil(self.rows / self.micro_rows)

    @property
    def positions(self) -> int:
        """Targets ``N`` of the largest micro-batch."""
        return self.micro_rows * self.completion

    def with_micro_rows(self, rows: int) -> Workload:
        return replace(self, micro_rows=rows)


def read(config: dict[str, Any], tokenizer: Any, max_positions: int | None, world_size: int) -> Workload:
    """The work of one rank; completions of rollouts count with their limit, as nobody knows how long they will be.

    Raises:
        UserError: the data cannot be read.
    """
    rollout, sampled = config["rollout"], config["rollout"]["kind"] != "dataset"
    fixed = not sampled or schedule.lowest(rollout["on_policy_fraction"]) < 1
    train, held_out = data.build(
        config["data"], tokenizer, seed=config["seed"], max_positions=max_positions, completions=fixed,
        needs=Needs.of(config["teacher"], None, 0), judging=config["eval_data"],
    )  # fmt: skip
    rows = config["data"]["batch_size"] // world_size
    micro = min(config["trainer"]["micro_batch_size"] or rows, rows)
    prompts = config["data"]["batch_size"] // rollout["samples_per_prompt"]
    needed = min(prompts * config["trainer"]["max_steps"], LOOKED_AT)
    seen = [train[index] for index in dict.fromkeys(order(train, config["seed"], 0, needed))]
    prompt = max(len(sample.prompt_ids) for sample in seen)
    rooms = [room(len(sample.prompt_ids), rollout["max_new_tokens"], max_positions) for sample in seen]
    shapes = [(len(s.input_ids), sum(s.target_mask)) for s in seen] if fixed else []
    if sampled:
        shapes += [(prompt + min(rooms), min(rooms))]
    length, completion = max(shapes)
    mean = shapes[-1][0] if sampled else sum(size for size, _ in shapes) / len(shapes)
    told = max(len(sample.briefing.prompt_ids) - sample.briefing.replaces for sample in seen)
    count = min(data.judged(config)["eval_size"], len(held_out))
    return Workload(
        rows, micro, prompt, length, completion, mean, sum(rooms) / len(rooms),
        math.ceil(count / world_size), _longest(held_out, count), config["trainer"]["max_steps"], len(train),
        max(told, 0),
    )  # fmt: skip


def room(prompt: int, max_new_tokens: int, max_positions: int | None) -> int:
    """Tokens that may follow a prompt of so many, in a model of so many positions (None: any number)."""
    return max_new_tokens if max_positions is None else max(min(max_new_tokens, max_positions - prompt), 1)


def _longest(dataset: Dataset, count: int) -> int:
    return max(len(dataset[index].prompt_ids) for index in range(min(count, LOOKED_AT)))
