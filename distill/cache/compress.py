"""From the teacher's whole distribution at a position to the little that a cache keeps of it, and back.

Kept are the K likeliest tokens and the target, each with its log-probability, and the mass of all others: as one
number, which :func:`expand` spreads evenly, or as m tokens drawn from them, which makes the expanded distribution
unbiased: its expectation over the draws is the teacher's own. The first is enough for every divergence that merges what
is outside the top K into one bucket; the second is the random sampling of logits for the tail alone (compare arXiv
2503.16870, which draws all of them). Shapes: ``n`` positions, ``V`` vocabulary, ``K`` kept, ``m`` drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """``tokens`` int64 ``[n, K]`` with ``logprobs`` ``[n, K]``, likeliest first; ``target_logprobs`` ``[n]``;
    ``log_rest`` ``[n]``, log of the mass of every token that is neither among the K nor the target (-inf for none);
    ``drawn`` int64 ``[n, m]`` from those tokens, m = 0 where the rest is one number."""

    tokens: Tensor
    logprobs: Tensor
    target_logprobs: Tensor
    log_rest: Tensor
    drawn: Tensor

    def take(self, positions: Tensor) -> Kept:
        return Kept(*(getattr(self, name)[positions] for name in FIELDS))

    def to(self, device: torch.device | str) -> Kept:
        return Kept(*(getattr(self, name).to(device) for name in FIELDS))


FIELDS = ("tokens", "logprobs", "target_logprobs", "log_rest", "drawn")


def compress(log_probs: Tensor, targets: Tensor, k: int, draws: int, uniforms: Tensor) -> Kept:
    """``[n, V]`` log-probabilities and target ids ``[n]`` → what is kept; ``uniforms`` fp64 ``[n]`` in [0, 1).

    The m drawn tokens are a systematic sample: one uniform number u, and the tokens at the quantiles (j + u)/m of the
    rest. Each token's expected count is m times its share, with less variance than m independent draws.
    """
    logprobs, tokens = log_probs.topk(min(k, log_probs.shape[-1]))
    target_logprobs = log_probs.gather(-1, targets[:, None]).squeeze(-1)
    rest = log_probs.scatter(-1, tokens, -math.inf).scatter(-1, targets[:, None], -math.inf)
    log_rest = rest.logsumexp(-1)
    drawn = tokens.new_empty(len(tokens), 0)
    if draws:
        weights = rest.double().exp()
        cumulative = weights.cumsum(-1)
        steps = torch.arange(draws, dtype=torch.float64, device=rest.device)
        wanted = (steps + uniforms.to(rest.device)[:, None]) / draws * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, wanted, right=True)
        # Where rounding leads past the end, and where there is no rest: any token, whose share of 0 counts nothing.
        last = (weights > 0).long().mul(torch.arange(weights.shape[-1], device=rest.device)).amax(-1, keepdim=True)
        drawn = torch.minimum(drawn, last)
    return Kept(tokens, logprobs, target_logprobs, log_rest, drawn)


def expand(kept: Kept, targets: Tensor, vocab_size: int) -> Tensor:
    """What is kept → log-probabilities ``[n, V]`` in fp32; exactly the teacher's for kept tokens and targets."""
    count, inside = len(targets), (kept.tokens == targets[:, None]).any(-1)
    log_rest = kept.log_rest.float()
    if kept.drawn.shape[-1]:
        shares = torch.zeros(count, vocab_size, device=log_rest.device)
        each = (log_rest.exp() / kept.drawn.shape[-1])[:, None].expand_as(kept.drawn)
        whole = shares.scatter_add_(-1, kept.drawn, each).log_()
    else:
        others = vocab_size - kept.tokens.shape[-1] - (~inside).long()
        level = torch.where(others > 0, log_rest - others.clamp(min=1).log(), -math.inf)
        whole = level[:, None].expand(count, vocab_size).contiguous()
    whole = whole.scatter_(-1, targets[:, None], kept.target_logprobs.float()[:, None])
    return whole.scatter_(-1, kept.tokens, kept.logprobs.float())
