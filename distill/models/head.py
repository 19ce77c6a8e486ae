"""The output head of a causal LM, from hidden states to logits over the shared vocabulary.

What a model does behind its output embedding (soft-capping, a logit scale) has another name in every family. It is
therefore measured, not read from the configuration: known values are put in place of the embedding's output, and what
comes out tells scale and cap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALL, _HUGE = 2.0**-10, 2.0**20
_PROBE = torch.tensor([_SMALL, _HUGE, 2 * _HUGE, 0.0, *range(-200, 201, 40)])


@dataclass(frozen=True)
class LogitHead:
    """``[..., H] → [..., V]``: output embedding without its padding rows, times ``scale``, soft-capped at ``cap``.

    The cap is Gemma 2's: ``cap · tanh(logits / cap)``.
    """

    module: nn.Module
    vocab_size: int
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(hidden.device.type):
            # States that a backbone made under autocast are narrower than the weights.
            hidden = hidden.to(next(self.module.parameters()).dtype)
        return self.transform(self._project(hidden))

    def _project(self, hidden: Tensor) -> Tensor:
        module = self.module
        if type(module) is nn.Linear:
            # Not called as a module: ranks have different numbers of chunks, and DeepSpeed's hooks gather at each call.
            bias = None if module.bias is None else module.bias[: self.vocab_size]
            return functional.linear(hidden, module.weight[: self.vocab_size], bias)
        logits: Tensor = module(hidden)
        return logits[..., : self.vocab_size]

    def transform(self, logits: Tensor) -> Tensor:
        """Scale and cap: what the model does behind its output embedding."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def identity(logits: Tensor) -> Tensor:
    """The head of a model whose "hidden states" are its logits already."""
    return logits


def measure(
    model: nn.Module, output: nn.Module, inputs: dict[str, Any], vocab_size: int
) -> tuple[LogitHead, Tensor] | None:
    """Finds the head around the output embedding ``output`` by one forward pass of ``model`` on ``inputs``.

    Returns the head and the states ``[B, T, H]`` that entered ``output``; None if the model does something else than
    scaling and capping, or does not call ``output``.
    """
    entered: list[Tensor] = []

    def replace(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> Tensor:
        entered.extend(arguments)
        probe = _PROBE.to(result.device)
        return probe.repeat(-(-result.numel() // len(probe)))[: result.numel()].view_as(result)

    hook = output.register_forward_hook(replace)
    try:
        logits = model(**inputs).logits.float().flatten().cpu()
    finally:
        hook.remove()
    if len(entered) != 1 or len(logits) < len(_PROBE):
        return None
    small, huge, twice = logits[:3].tolist()
    scale = 1.0 if math.isclose(small, _SMALL, rel_tol=1e-6) else small / _SMALL
    head = LogitHead(output, vocab_size, scale, cap=huge if huge == twice else None)
    explained = torch.allclose(head.transform(_PROBE), logits[: len(_PROBE)], rtol=1e-4, atol=1e-4)
    return (head, entered[0]) if explained else None
