"""The decode loop: continues prompts token by token with a KV cache, for any ``transformers`` causal LM.

Nothing is inherited from the model's generation config. The prompts of a batch are left-padded, positions are counted
from the mask, and rows that have ended leave the batch and its cache, so that a few long completions do not cost a full
batch. ``B`` rows, ``T`` time, ``V`` vocabulary.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from distill import distributed, sharding
from distill.errors import UserError
from distill.models.causal_lm import CausalLM, evaluating, unwrap
from distill.rollouts.sampling import Sampling, sample
from distill.rollouts.seeds import uniforms

__all__ = ["Completion", "Sampling", "generate", "room"]

COMPACT_AT = 0.25
"""Share of ended rows at which the others are copied into a smaller batch."""


@dataclass(frozen=True)
class Completion:
    """Sampled ``ids``, the end-of-sequence token included, and their policy log-probabilities, fp32 ``[len(ids)]``.

    ``stopped`` is True where an end-of-sequence token was sampled, False where the length limit cut the completion.
    """

    ids: tuple[int, ...]
    logprobs: Tensor
    stopped: bool


def generate(
    lm: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    batch_size: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Continues each prompt, in the order given; ``seeds[i]`` (63 bits) is all the randomness of row ``i``.

    Tokens depend on a row's seed and logits only. Logits of one prompt differ by float rounding between batch shapes,
    which matters only where a draw falls within that rounding of the border between two tokens (about 1e-6 of the
    draws in fp32). At most ``batch_size`` rows are decoded at once, prompts of similar length together.
    ``on_progress`` is called after each decode step with the number of new tokens. Log-probabilities: see
    :func:`distill.rollouts.sampling.sample`.

    Raises UserError for an empty prompt or one that fills the model's context, RunError for logits that are not finite.
    """
    rows = [_Row(prompt, seed, room(lm, len(prompt), sampling)) for prompt, seed in zip(prompts, seeds, strict=True)]
    # Longest first: if memory does not suffice, it shows at once.
    ordered = sorted(rows, key=lambda row: -len(row.prompt))
    # Evaluation mode also lets the cache work under gradient checkpointing.
    with evaluating(lm.model):
        for start in range(0, len(ordered), batch_size):
            _decode(lm, ordered[start : start + batch_size], sampling, on_progress)
    return [Completion(tuple(row.ids), torch.tensor(row.logprobs, dtype=torch.float32), row.stopped) for row in rows]


@dataclass
class _Row:
    prompt: Sequence[int]
    seed: int
    room: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.ids) == self.room


class _Stream:
    """A batch of rows inside the model, all growing by one token at a time: KV cache, mask and positions."""

    def __init__(self, lm: CausalLM, prompts: list[Sequence[int]]) -> None:
        self.model, self.vocab_size = lm.model, lm.vocab_size
        self.device = next(lm.model.parameters()).device
        self.accepted = inspect.signature(unwrap(lm.model).forward).parameters
        self.last_position = sys.maxsize if lm.max_positions is None else lm.max_positions - 1
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        rows = [[lm.pad_id] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        self.input_ids = torch.tensor(rows, device=self.device)
        columns = torch.arange(width, device=self.device)
        self.attention_mask = (columns >= torch.tensor(padding, device=self.device)[:, None]).long()
        self.position_ids = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.cache: Any = None

    def logits(self) -> Tensor:
        """Logits ``[B, V]`` of each row's next token, over the shared vocabulary."""
        optional = {"position_ids": self.position_ids, "logits_to_keep": 1}
        output = self.model(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self.accepted},
        )
        self.cache = getattr(output, "past_key_values", None)
        if self.cache is None:
            kind = unwrap(self.model).config.model_type
            raise UserError("student.path", kind, "a type of model that returns its KV cache, to generate with it")
        logits: Tensor = output.logits[:, -1, : self.vocab_size]
        return logits

    def append(self, tokens: Tensor) -> None:
        """Makes ``tokens [B]`` the next input."""
        self.input_ids = tokens[:, None]
        self.attention_mask = nn.functional.pad(self.attention_mask, (0, 1), value=1)
        # Rows that have ended at the limit of learned positions go on in the batch for a while.
        self.position_ids = (self.position_ids[:, -1:] + 1).clamp(max=self.last_position)

    def keep(self, lines: list[int]) -> bool:
        """Drops all other lines of the batch, which only saves time."""
        if self.cache.__class__ is not DynamicCache:
            # Some models add states of their own (MiniMax), which reorder_cache passes over.
            return False
        index: Any = torch.tensor(lines, device=self.device)
        # Unlike batch_select_indices, this exists for every kind of layer, also recurrent and convolutional ones.
        self.cache.reorder_cache(index)
        self.input_ids, self.attention_mask = self.input_ids[index], self.attention_mask[index]
        self.position_ids = self.position_ids[index]
        return True


class _Replay:
    """The same for models without a KV cache (Mamba, RWKV): right-padded rows, read from the start at each step."""

    def __init__(self, lm: CausalLM, prompts: list[Sequence[int]]) -> None:
        self.lm, self.device = lm, next(lm.model.parameters()).device
        self.rows = [torch.tensor(prompt, device=self.device) for prompt in prompts]

    def logits(self) -> Tensor:
        lengths = torch.tensor([len(row) for row in self.rows], device=self.device)
        input_ids = nn.utils.rnn.pad_sequence(self.rows, batch_first=True, padding_value=self.lm.pad_id)
        mask = torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]
        states = self.lm.hidden(input_ids, mask)
        with sharding.gathered(self.lm.head_parameters):
            return self.lm.head(states[torch.arange(len(lengths), device=self.device), lengths - 1])

    def append(self, tokens: Tensor) -> None:
        self.rows = [torch.cat([row, token]) for row, token in zip(self.rows, tokens.split(1), strict=True)]

    def keep(self, lines: list[int]) -> bool:
        self.rows = [self.rows[line] for line in lines]
        return True


def _decode(lm: CausalLM, rows: list[_Row], sampling: Sampling, on_progress: Callable[[int], None] | None) -> None:
    """Extends the rows in place, until each has ended."""
    cached = "past_key_values" in inspect.signature(unwrap(lm.model).forward).parameters
    stream = (_Stream if cached else _Replay)(lm, [row.prompt for row in rows])
    # While the weights are in shards every forward pass takes all ranks: those that have finished go on beside them.
    together = sharding.is_sharded(lm.model.parameters())
    for position in itertools.count():
        seeds = np.array([row.seed for row in rows], dtype=np.uint64)
        uniform = torch.from_numpy(uniforms(seeds, position)).to(stream.device)
        tokens, logprobs = sample(stream.logits(), sampling, uniform, lm.name)
        growing = [row for row in rows if not row.ended]
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if not row.ended:
                row.ids.append(token)
                row.logprobs.append(logprob)
                row.stopped = token in lm.eos_ids
        if on_progress is not None:
            on_progress(len(growing))
        lines = [line for line, row in enumerate(rows) if not row.ended]
        if not (distributed.all_max(len(lines)) if together else lines):
            return
        stream.append(tokens)
        # One row is left to go on with.
        lines = lines or [0]
        if len(rows) - len(lines) >= COMPACT_AT * len(rows) and stream.keep(lines):
            rows = [rows[line] for line in lines]


def room(lm: CausalLM, prompt_length: int, sampling: Sampling) -> int:
    """Tokens that may follow a prompt."""
    if prompt_length == 0:
        raise UserError("prompt", "", "at least one token long")
    limit = lm.max_positions
    if limit is None:
        return sampling.max_new_tokens
    if prompt_length >= limit:
        raise UserError("prompt", f"{prompt_length} tokens", f"shorter than the model's context of {limit} tokens")
    return min(sampling.max_new_tokens, limit - prompt_length)
