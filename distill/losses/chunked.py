"""The fused head: hidden states → logits → losses and their gradients, a chunk of positions at a time.

No ``[B, T, V]`` tensor exists, and with several chunks no ``[N, V]`` either: a chunk's gradients are taken as soon as
its loss is known, so its logits are made once, in the forward pass, and dropped (as Liger Kernel's fused linear
cross-entropy does, arXiv 2410.10989). The head is therefore used in the forward pass only: sharded weights have to be
there just for the loss. Shapes: ``N`` target positions, ``n`` those of one chunk, ``H`` hidden width, ``V`` vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from distill.types import Signal

PositionLoss = Callable[[Tensor, Tensor | None, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
"""(student logits ``[n, V]``, teacher logits ``[n, V]`` or None, targets ``[n]``, sampler log-probabilities ``[n]`` or
None), logits in fp32 or fp64 → (loss ``[n]``, detached metrics ``[n]`` by name)."""

Sums = dict[str, Tensor]


def chunked_sum(
    position_loss: PositionLoss,
    student: Signal,
    teacher: Signal | None,
    targets: Tensor,
    sampler_logprobs: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Sums]:
    """Sum of ``position_loss`` over all positions, with graph, and the fp32 sums of its metrics, without.

    No position at all is one chunk of 0 rows: the loss is exactly 0 and its graph reaches the hidden states and every
    parameter of the head, with zero gradients. The graph can be walked backward once. Raises ValueError when the parts
    disagree about N.
    """
    _check_lengths(student, teacher, targets, sampler_logprobs)

    def parts(hidden: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, Sums]]]:
        """Each chunk's hidden states, cut off from their graph, and its loss and metrics."""
        others = [None if teacher is None else teacher.hidden, targets, sampler_logprobs]
        chunks = [repeat(None) if part is None else torch.split(part, chunk_size) for part in others]
        for piece, taught, ids, sampler in zip(torch.split(hidden.detach(), chunk_size), *chunks, strict=False):
            piece.requires_grad_(hidden.requires_grad)
            teacher_logits = None
            if teacher is not None:
                with torch.no_grad():
                    teacher_logits = _upcast(teacher.head(taught))
            values, metrics = position_loss(_upcast(student.head(piece)), teacher_logits, ids, sampler)
            yield piece, (values.sum(), {name: value.sum(dtype=torch.float32) for name, value in metrics.items()})

    sums: dict[str, list[Tensor]] = defaultdict(list)
    parameters = _parameters(student) if torch.is_grad_enabled() else []
    if parameters or (torch.is_grad_enabled() and student.hidden.requires_grad):
        loss: Tensor = _Fused.apply(parts, sums, student.hidden, *parameters)
    else:
        loss = torch.stack([_add(sums, part) for _, part in parts(student.hidden)]).sum()
    return loss, {name: torch.stack(values).sum() for name, values in sums.items()}


class _Fused(torch.autograd.Function):
    """Hidden states and the head's parameters → loss; their gradients are ready when the forward pass is over."""

    @staticmethod
    def forward(ctx: Any, parts: Any, sums: dict[str, list[Tensor]], hidden: Tensor, *parameters: Tensor) -> Tensor:
        losses, hidden_grads = [], []
        # Sums over chunks in the narrow type of half-precision weights would lose the later chunks.
        grads = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        with torch.enable_grad():
            for piece, part in parts(hidden):
                inputs = [piece, *parameters] if piece.requires_grad else [*parameters]
                found = torch.autograd.grad(part[0], inputs, allow_unused=True)
                losses.append(_add(sums, (part[0].detach(), part[1])))
                if piece.requires_grad:
                    hidden_grads.append(torch.zeros_like(piece) if found[0] is None else found[0])
                    found = found[1:]
                for total, grad in zip(grads, found, strict=True):
                    if grad is not None:
                        total += grad
        ctx.grads = [torch.cat(hidden_grads) if hidden_grads else None, *grads]
        ctx.dtypes = [hidden.dtype, *(p.dtype for p in parameters)]
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        # In place and therefore once: a second copy of the head's gradient would be the largest tensor of a step.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the chunked loss can be walked backward once")
        scaled = [None if grad is None else grad.mul_(outer[0]) for grad in grads]
        return None, None, *(g if g is None else g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes, strict=True))


def _parameters(student: Signal) -> list[Tensor]:
    """The leaves that gradients of the head flow to, found by walking the graph of its output for no position."""
    probe = student.head(student.hidden.detach()[:0])
    found: dict[int, Tensor] = {}
    seen, stack = set(), [probe.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        stack += [parent for parent, _ in node.next_functions]
    return list(found.values())


def _add(sums: dict[str, list[Tensor]], part: tuple[Tensor, Sums]) -> Tensor:
    for name, value in part[1].items():
        sums[name].append(value)
    return part[0]


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
