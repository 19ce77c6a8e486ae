"""The fused head: hidden states → logits → losses, a chunk of positions at a time.

No ``[B, T, V]`` tensor exists, and with several chunks no ``[N, V]`` either: each chunk's logits are dropped after its
forward pass and computed again in the backward pass. Shapes: ``N`` target positions, ``n`` those of one chunk, ``H``
hidden width, ``V`` vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill.types import Signal

PositionLoss = Callable[[Tensor, Tensor | None, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
"""(student logits ``[n, V]``, teacher logits ``[n, V]`` or None, targets ``[n]``, sampler log-probabilities ``[n]`` or
None), logits in fp32 or fp64 → (loss ``[n]``, detached metrics ``[n]`` by name)."""


def chunked_sum(
    position_loss: PositionLoss,
    student: Signal,
    teacher: Signal | None,
    targets: Tensor,
    sampler_logprobs: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of ``position_loss`` over all positions, with graph, and the fp32 sums of its metrics, without.

    No position at all is one chunk of 0 rows: the loss is exactly 0 and its graph reaches the hidden states and every
    parameter of the head, with zero gradients. Raises ValueError when the parts disagree about N.
    """
    _check_lengths(student, teacher, targets, sampler_logprobs)

    def chunk_sum(
        hidden: Tensor, teacher_hidden: Tensor | None, targets: Tensor, sampler: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        teacher_logits = None
        if teacher is not None and teacher_hidden is not None:
            with torch.no_grad():
                teacher_logits = _upcast(teacher.head(teacher_hidden))
        values, metrics = position_loss(_upcast(student.head(hidden)), teacher_logits, targets, sampler)
        return values.sum(), {name: value.sum(dtype=torch.float32) for name, value in metrics.items()}

    # split, not slicing: its backward writes the gradient of all hidden states once instead of once per chunk.
    hidden = torch.split(student.hidden, chunk_size)
    teacher_hidden = repeat(None) if teacher is None else torch.split(teacher.hidden, chunk_size)
    sampler = repeat(None) if sampler_logprobs is None else torch.split(sampler_logprobs, chunk_size)
    losses, sums = [], defaultdict(list)
    for part in zip(hidden, teacher_hidden, torch.split(targets, chunk_size), sampler, strict=False):
        loss, metrics = chunk_sum(*part) if len(hidden) == 1 else checkpoint(chunk_sum, *part, use_reentrant=False)
        losses.append(loss)
        for name, value in metrics.items():
            sums[name].append(value)
    return torch.stack(losses).sum(), {name: torch.stack(values).sum() for name, values in sums.items()}


def _upcast(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_lengths(student: Signal, teacher: Signal | None, targets: Tensor, sampler_logprobs: Tensor | None) -> None:
    lengths = {"student.hidden": len(student.hidden), "targets": len(targets)}
    if teacher is not None:
        lengths["teacher.hidden"] = len(teacher.hidden)
    if sampler_logprobs is not None:
        lengths["sampler_logprobs"] = len(sampler_logprobs)
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"all parts of a batch must have the same number of positions N, but have: {found}.")
