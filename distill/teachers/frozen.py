"""The frozen teacher: a model that is asked and never changed, whole on every rank or in shards."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill import sharding
from distill.models.base import Network
from distill.types import MicroBatch, Signal

Placement = Literal["replicated", "sharded", "offloaded"]


class FrozenTeacher:
    """Wraps ``lm`` for reading. Freezes its parameters.

    A plain object on purpose: as an attribute of a LightningModule it is in no checkpoint, optimizer, ``.train()`` or
    ``.to()`` call. ``placement``: `replicated`, the weights on every rank; `sharded`, each rank has its part and a
    layer is gathered while it runs; `offloaded`, the same with the parts in CPU memory. The last two take a process
    group.
    """

    def __init__(self, lm: Network, placement: Placement = "replicated") -> None:
        # Whoever asks for more than states and a head knows what model it is.
        self.lm: Any = lm
        self.placement = placement
        lm.model.requires_grad_(False)
        lm.model.eval()
        self._states: Any = _States(lm)

    @property
    def judge(self) -> FrozenTeacher:
        return self

    @property
    def max_positions(self) -> int | None:
        limit: int | None = self.lm.max_positions
        return limit

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        found: list[nn.Parameter] = self.lm.head_parameters
        return found

    def signal(self, batch: MicroBatch) -> Signal:
        """The teacher's states at the batch's targets, ``[N, H]``, and its head; neither carries gradients.

        States that the rollout left in the batch are taken as they are. A collective unless replicated; the head of a
        sharded teacher has to be gathered where it is called.
        """
        if batch.teacher_states is not None:
            return Signal(batch.teacher_states, self.lm.head)
        # Whoever holds the model may have switched dropout on since the last call.
        self.lm.model.eval()
        seen = batch.for_teacher
        # Not inference mode: its tensors may not be saved for the backward pass of the student's loss.
        with torch.no_grad():
            return Signal(seen.select(self._states(*seen.inputs)), self.lm.head)

    def place(self, device: torch.device | str) -> FrozenTeacher:
        """Moves the teacher to where it is asked; in shards it stays where its shards are."""
        if self.placement == "replicated":
            model: nn.Module = self.lm.model
            model.to(device)
        elif not sharding.is_sharded(self.lm.model.parameters()):
            self._states = sharding.shard_frozen(self._states, device, offload=self.placement == "offloaded")
        return self


class _States(nn.Module):
    """Hidden states as one forward pass of one module, which DeepSpeed can wrap as the root of its hooks."""

    def __init__(self, lm: Network) -> None:
        super().__init__()
        self.model, self.states = lm.model, lm.hidden

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.states(*inputs)
