"""Several frozen teachers: their mixture teaches every row, or each row has its own.

``N`` targets, ``n`` those of one chunk, ``H`` the members' hidden widths, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.teachers.frozen import FrozenTeacher
from distill.types import Batch, Head, Signal


class MultiTeacher:
    """``weights`` by member (relative, above 0) mix their distributions; None: the rows of a batch name their member.

    The mixture is Σ wᵢ·pᵢ with Σ wᵢ = 1. KL(mixture‖p_S) and Σ wᵢ·KL(pᵢ‖p_S) differ by a number that does not depend
    on the student: the forward KL has the gradient of the members' weighted KLs. Other divergences are those to the
    mixture. Members are whole on every rank, and a rank asks those its rows name: nobody waits for them.
    """

    def __init__(self, members: Mapping[str, FrozenTeacher], weights: Mapping[str, float] | None) -> None:
        self.members, self.weights = dict(members), weights

    @property
    def judge(self) -> MultiTeacher:
        return self

    @property
    def max_positions(self) -> int | None:
        limits = [member.max_positions for member in self.members.values()]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        return [parameter for member in self.members.values() for parameter in member.head_parameters]

    def signal(self, batch: Batch) -> Signal:
        """What the head needs of each target, ``[N, …]``, and the head that makes log-probabilities of it."""
        return self._each(batch) if self.weights is None else self._mixture(batch, self.weights)

    def place(self, device: torch.device | str) -> MultiTeacher:
        for member in self.members.values():
            member.place(device)
        return self

    def _mixture(self, batch: Batch, weights: Mapping[str, float]) -> Signal:
        """States of all members side by side, ``[N, ΣH]``."""
        signals, total = {name: member.signal(batch) for name, member in self.members.items()}, sum(weights.values())
        heads = [signal.head for signal in signals.values()]
        widths = [signal.hidden.shape[-1] for signal in signals.values()]
        logs = [math.log(weights[name] / total) for name in signals]

        def head(packed: Tensor) -> Tensor:
            mixed: Tensor | None = None
            for states, own, log_weight in zip(packed.split(widths, -1), heads, logs, strict=True):
                term = _log_probs(own, states) + log_weight
                mixed = term if mixed is None else torch.logaddexp(mixed, term)
            assert mixed is not None
            return mixed

        return Signal(torch.cat([signal.hidden for signal in signals.values()], -1), head)

    def _each(self, batch: Batch) -> Signal:
        """States of each target's member, padded to the widest, and the member's number: ``[N, max H + 1]``."""
        seen, names = batch.for_teacher, list(self.members)
        numbers = torch.tensor([names.index(str(name)) for name in seen.members], device=seen.input_ids.device)
        owner = numbers[:, None].expand_as(seen.target_mask)[seen.target_mask]
        heads: dict[int, tuple[Head, int]] = {}
        parts: dict[int, Tensor] = {}
        for number, (name, member) in enumerate(self.members.items()):
            if name in seen.members:
                signal = member.signal(_rows(seen, numbers == number))
                heads[number], parts[number] = (signal.head, signal.hidden.shape[-1]), signal.hidden
        packed = torch.zeros(len(owner), max(width for _, width in heads.values()) + 1, device=owner.device)
        packed[:, -1] = owner
        for number, states in parts.items():
            packed[owner == number, : states.shape[-1]] = states.to(packed.dtype)

        def head(packed: Tensor) -> Tensor:
            found: Tensor | None = None
            for number, (own, width) in heads.items():
                mine = packed[:, -1] == number
                part = _log_probs(own, packed[mine, :width])
                found = part.new_zeros(len(packed), part.shape[-1]) if found is None else found
                found[mine] = part
            assert found is not None
            return found

        return Signal(packed, head)


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    """The rows of a batch where ``chosen [B]``, as far as a teacher looks."""
    ids, mask, targets = batch.input_ids[chosen], batch.attention_mask[chosen], batch.target_mask[chosen]
    return Batch(ids, mask, targets, batch.sample_ids[chosen], batch.window_positions)


def _log_probs(head: Head, states: Tensor) -> Tensor:
    """In fp32 at least, ``[n, V]``."""
    logits = head(states)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
