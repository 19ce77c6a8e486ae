"""Networks that are trained together with the student: as a teacher, what an evaluation compares the student with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from distill.models.base import Network
from distill.models.causal_lm import evaluating
from distill.types import MicroBatch, Signal


class CotrainedTeacher:
    """``networks`` by name as they are now; several count as the mean of their distributions.

    Whoever trains them registers their models; this only asks them, without gradients and without dropout. In training
    the student learns from the very passes in which they learn themselves (``distill.mutual``), not from here.
    """

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self.networks = dict(networks)

    @property
    def judge(self) -> CotrainedTeacher:
        return self

    @property
    def max_positions(self) -> int | None:
        limits = [network.max_positions for network in self.networks.values()]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        return [parameter for network in self.networks.values() for parameter in network.head_parameters]

    def signal(self, batch: MicroBatch) -> Signal:
        """States of all networks side by side, ``[N, ΣH]``, and the head to log-probabilities ``[n, V]``."""
        with torch.no_grad(), ExitStack() as stack:
            for network in self.networks.values():
                stack.enter_context(evaluating(network.model))
            signals = [network.signal(batch) for network in self.networks.values()]
        widths = [signal.hidden.shape[-1] for signal in signals]

        def head(packed: Tensor) -> Tensor:
            parts = packed.split(widths, -1)
            said = [_log_probs(signal.head(part)) for signal, part in zip(signals, parts, strict=True)]
            return torch.stack(said).logsumexp(0) - math.log(len(said))

        return Signal(torch.cat([signal.hidden for signal in signals], -1), head)

    def place(self, device: torch.device | str) -> CotrainedTeacher:
        """Where they are trained."""
        return self


def _log_probs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
