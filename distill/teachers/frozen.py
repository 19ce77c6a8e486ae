"""The frozen teacher: a model that is asked and never changed."""

from __future__ import annotations

import torch
from torch import nn

from distill.models.causal_lm import CausalLM
from distill.types import Batch, Signal


class FrozenTeacher:
    """Wraps ``lm`` for reading. Freezes its parameters.

    A plain object on purpose: as an attribute of a LightningModule it is in no checkpoint, optimizer, ``.train()`` or
    ``.to()`` call.
    """

    def __init__(self, lm: CausalLM) -> None:
        self.lm = lm
        lm.model.requires_grad_(False)
        lm.model.eval()

    def signal(self, batch: Batch) -> Signal:
        """The teacher's states at the batch's targets, ``[N, H]``, and its head; neither carries gradients."""
        # Whoever holds the model may have switched dropout on since the last call.
        self.lm.model.eval()
        # Not inference mode: its tensors may not be saved for the backward pass of the student's loss.
        with torch.no_grad():
            return self.lm.signal(batch)

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Moves the teacher's weights."""
        model: nn.Module = self.lm.model
        model.to(device)
        return self
