"""What an optimizer steps on this rank, by parameter: whole parameters, or the flat fp32 vectors of DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill import sharding
from distill.selection import Whole, integers

Masks = Callable[[str], Tensor]
"""A parameter's name → its mask (bool), in full."""


@dataclass(frozen=True)
class Part:
    """Elements ``[low, low + numel)`` of a parameter, which are those from ``start`` on of a flat vector."""

    name: str
    parameter: Any
    start: int
    low: int
    numel: int

    @property
    def weights(self) -> Tensor:
        """What the forward pass reads of them: under ZeRO a copy of the vector's, in the weights' dtype."""
        if hasattr(self.parameter, "ds_tensor"):
            shard: Tensor = self.parameter.ds_tensor.detach().reshape(-1)
            return shard[: self.numel]
        whole: Tensor = self.parameter.detach().reshape(-1)
        return whole[self.low : self.low + self.numel]


@dataclass(frozen=True)
class Vector:
    """A tensor that the optimizer steps, and the parameters in it. Under ZeRO-1 and 2 a vector may have a filling."""

    values: Tensor
    parts: tuple[Part, ...]

    def mask(self, masks: Masks) -> Tensor:
        """Bool, flat; a filling is not selected."""
        mask = torch.zeros(self.values.numel(), dtype=torch.bool)
        for part in self.parts:
            mask[part.start : part.start + part.numel] = masks(part.name).reshape(-1)[part.low : part.low + part.numel]
        return mask


def of_parameters(named: Mapping[str, Tensor]) -> list[Vector]:
    """Without DeepSpeed: every parameter is stepped as it is."""
    return [Vector(values, (Part(name, values, 0, 0, values.numel()),)) for name, values in named.items()]


def of_zero(zero: Any, named: Mapping[str, Tensor]) -> list[Vector]:
    """The vectors of DeepSpeed's optimizer. Raises RunError where it keeps them in an unknown way."""
    names = {id(parameter): name for name, parameter in named.items()}
    return [
        Vector(flat, tuple(Part(names[id(p)], p, *place) for p, *place in sharding.fragments(parameters)))
        for parameters, flat in zip(*sharding.flat_groups(zero), strict=True)
    ]


class ZeroGradients:
    """Masks the gradients that DeepSpeed has reduced, where they lie, before it measures and clips them.

    ``selected`` tells the mask (bool, flat) of a vector. ZeRO-1 with bf16 weights has all gradients on every rank, and
    measures their norm there: for it, whole masks are kept, a bit for each coordinate.
    """

    def __init__(self, zero: Any, vectors: list[Vector], selected: Callable[[Tensor], Tensor], masks: Masks) -> None:
        self.zero, self.vectors, self.selected = zero, vectors, selected
        self._whole: list[list[Whole]] = []
        if hasattr(zero, "fp32_groups_gradients"):
            device = zero.fp32_groups_gradients_flat[0].device
            self._whole = [[Whole(masks(part.name).to(device)) for part in vector.parts] for vector in vectors]

    @torch.no_grad()
    def mask(self) -> None:
        """At the end of an accumulation, between the last backward pass and the engine's step."""
        if self._whole:
            for gradients, masks in zip(self.zero.fp32_groups_gradients, self._whole, strict=True):
                for gradient, mask in zip(gradients, masks, strict=True):
                    integers(gradient).mul_(mask.selected())
            return
        for number, vector in enumerate(self.vectors):
            selected = self.selected(vector.values)
            if getattr(self.zero, "offload_optimizer", False):
                assert vector.values.grad is not None
                integers(vector.values.grad).mul_(selected)
                self._measure_again(vector)
                continue
            start = 0
            for gradient in self.zero.averaged_gradients[number]:
                end = start + gradient.numel()
                integers(gradient).mul_(selected[start:end].view(gradient.shape))
                start = end

    def _measure_again(self, vector: Vector) -> None:
        """With offloading DeepSpeed measures each gradient as it comes, before it could be masked."""
        norms = self.zero.norm_for_param_grads
        for part in vector.parts:
            key = self.zero.get_param_id(part.parameter)
            if key in norms:
                assert vector.values.grad is not None
                norms[key] = vector.values.grad[part.start : part.start + part.numel].norm(2)
