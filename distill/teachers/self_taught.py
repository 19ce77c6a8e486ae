"""The student as its own teacher: its current weights, reading more than the student is shown."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.models.causal_lm import CausalLM, evaluating
from distill.types import Batch, Signal


class SelfTeacher:
    """Asks ``student`` itself, as it is now, without gradients and without dropout.

    No weights of its own: under DDP and ZeRO its pass goes through the student as the training pass does, equally
    often on every rank. Ask before the training pass: DeepSpeed's ZeRO-3 counts the gradients to come in a module's
    latest forward pass. The method is that of on-policy self-distillation (SDFT, arXiv 2601.19897; SDPO, arXiv
    2601.20802) in our formulation: live weights, where these average them over time.
    """

    def __init__(self, student: CausalLM) -> None:
        self.lm = student

    @property
    def judge(self) -> SelfTeacher:
        return self

    @property
    def max_positions(self) -> int | None:
        return self.lm.max_positions

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """None beside the student's, which are there for its own loss."""
        return []

    def signal(self, batch: Batch) -> Signal:
        """The states at the batch's targets, ``[N, H]``, and the student's head; neither carries gradients."""
        seen = batch.for_teacher
        with evaluating(self.lm.model):
            return Signal(seen.select(self.lm.hidden(seen.input_ids, seen.attention_mask)), self._head)

    def place(self, device: torch.device | str) -> SelfTeacher:
        """Where the student is."""
        return self

    def _head(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            return self.lm.head(hidden)
