"""From logits to tokens: temperature, top-k, top-p, and one given uniform number per row.

``B`` rows, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import RunError, UserError

_ONE = 2.0**52


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    As everywhere, temperature comes first, then top-k, then top-p on what top-k left. ``lenient``: rows of logits
    that are not finite go on with any token, of log-probability NaN, so that no rank leaves a collective alone.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    lenient: bool = False

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError("rollout.temperature", self.temperature, "at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError("rollout.top_p", self.top_p, "above 0 and at most 1")
        if self.top_k < 0:
            raise UserError("rollout.top_k", self.top_k, "at least 0")
        if self.max_new_tokens < 1:
            raise UserError("rollout.max_new_tokens", self.max_new_tokens, "at least 1")


def sample(logits: Tensor, sampling: Sampling, uniform: Tensor, whose: str = "model") -> tuple[Tensor, Tensor]:
    """Draws one token per row from ``logits [B, V]`` by inverting the CDF at ``uniform [B]`` (float64, in [0, 1)).

    Returns tokens ``[B]`` and fp32 log-probabilities ``[B]`` under the distribution they were drawn from, temperature
    and truncation included (0 when greedy): the denominator that makes an importance ratio unbiased.

    A row depends on nothing but its own logits and number. Raises RunError if a row has NaN or +inf, or
    nothing but -inf, unless ``sampling`` is lenient; it names the model by ``whose``.
    """
    logits = logits.float()
    sound = logits.logsumexp(-1).isfinite()
    if not bool(sound.all()):
        if not sampling.lenient:
            raise RunError(f"The {whose}'s logits are not finite: its weights have diverged, or hold NaN or inf.")
        tokens, logprobs = sample(logits.masked_fill(~sound[:, None], 0.0), sampling, uniform)
        return tokens, logprobs.masked_fill(~sound, math.nan)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, torch.zeros_like(tokens, dtype=torch.float32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1 or 0 < sampling.top_k < logits.shape[-1]:
        return _draw_truncated(logits, sampling, uniform)
    tokens = _invert(_weights(logits), uniform)
    return tokens, _log_prob(logits, tokens)


def _draw_truncated(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    # A stable sort breaks ties by token id; topk may break them differently in another batch.
    logits, ids = logits.sort(dim=-1, descending=True, stable=True)
    logits = logits[:, : sampling.top_k or None]
    weights = _weights(logits)
    mass = weights.cumsum(-1)
    kept = mass - weights < sampling.top_p * mass[:, -1:]
    places = _invert(weights * kept, uniform)
    return ids.gather(-1, places[:, None]).squeeze(-1), _log_prob(logits.masked_fill(~kept, -math.inf), places)


def _log_prob(logits: Tensor, places: Tensor) -> Tensor:
    return logits.gather(-1, places[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _weights(logits: Tensor) -> Tensor:
    """Probabilities in units of 2**-52, int64: their sums are exact, in any order and on any device."""
    return (logits.softmax(-1) * _ONE).long()


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index ``[B]`` of the first cumulative weight above ``uniform`` times the total: never one of weight 0."""
    mass = weights.cumsum(-1)
    # Below 2**53 the product of an integer and a double below 1 rounds to less than the integer, never to it.
    threshold = (uniform * mass[:, -1]).long()
    return torch.searchsorted(mass, threshold[:, None], right=True).squeeze(-1)
