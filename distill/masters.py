"""This rank's share of the weights an optimizer steps: copied, and written so that the forward pass sees the same.

fp32 masters where there are any (under ZeRO, and in a compact masked optimizer of bf16 weights), else the parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from distill import distributed
from distill.masked_optim import MaskedOptimizer
from distill.partitions import Part, Vector, of_parameters, of_zero


class Masters:
    """The share of the parameters ``wanted`` by name out of all that are ``trained``.

    ``optimizer`` steps them; where the run is ``sharded`` it is DeepSpeed's, a rank has its part of each, and a part
    may be empty. Otherwise every rank has all of them.
    """

    def __init__(
        self, optimizer: Any, trained: Mapping[str, Tensor], wanted: Collection[str], *, sharded: bool
    ) -> None:
        self._optimizer, self._sharded = optimizer, sharded
        vectors = of_zero(optimizer, trained) if sharded else of_parameters(trained)
        found = [(vector, part) for vector in vectors for part in vector.parts if part.name in wanted]
        self._found: list[tuple[Vector, Part]] = [pair for pair in found if pair[1].numel]
        self.shapes = {name: _shape(trained[name]) for name in wanted}

    @property
    def parts(self) -> list[Part]:
        """Which coordinates this rank has, in the order of :meth:`read` and :meth:`write`."""
        return [part for _, part in self._found]

    @property
    def own(self) -> list[bool]:
        """For each part whether no other rank has it, or it is this rank's turn among the replicas."""
        rank, ranks = distributed.rank(), distributed.world_size()
        return [self._sharded or number % ranks == rank for number in range(len(self._found))]

    @torch.no_grad()
    def read(self) -> list[Tensor]:
        """Flat copies of the parts, in CPU memory."""
        return [self._values(vector, part).to("cpu", copy=True) for vector, part in self._found]

    @torch.no_grad()
    def write(self, values: Iterable[Tensor]) -> None:
        """Puts ``values``, flat and in the dtypes of :meth:`read`, into masters and weights. A collective."""
        for (vector, part), value in zip(self._found, values, strict=True):
            if isinstance(self._optimizer, MaskedOptimizer):
                self._optimizer.write_master(part.parameter, value.to(part.parameter.device))
            else:
                _stretch(vector, part).copy_(value)
        if self._sharded:
            self._pass_on()

    def _values(self, vector: Vector, part: Part) -> Tensor:
        if isinstance(self._optimizer, MaskedOptimizer):
            return self._optimizer.master(part.parameter).reshape(-1)
        return _stretch(vector, part)

    def _pass_on(self) -> None:
        """From DeepSpeed's masters to what the forward pass reads, as at the end of its own step."""
        zero = self._optimizer
        if hasattr(zero, "update_lp_params"):
            zero.update_lp_params()
            return
        # Small weights are gathered on every rank all the time: they are let go, and gathered anew.
        zero.checkpoint_event_prologue()
        for vector, part in self._found:
            part.weights.copy_(_stretch(vector, part))
        zero.checkpoint_event_epilogue()


def _stretch(vector: Vector, part: Part) -> Tensor:
    return vector.values.detach().view(-1)[part.start : part.start + part.numel]


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
