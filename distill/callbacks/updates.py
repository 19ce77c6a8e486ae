"""The student's matrices beside those it started from, dealt out over the ranks one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill import distributed, sharding
from distill.analysis.live import Weight, live_weights
from distill.analysis.source import Folder, match
from distill.errors import RunError, UserError


class Updates:
    """θ₀ and θ of every 2-D weight that is not empty, by checkpoint name; a LoRA student's are the merged ones.

    θ is the fp32 master where DeepSpeed has one. ``key`` names the option in errors.

    Raises:
        UserError: the student does not fit the safetensors folder ``source``.
    """

    def __init__(self, model: Any, source: Path, key: str) -> None:
        self.source, self.key = source, key
        self._weights, tied = live_weights(model)
        shapes = {name: tuple(weight.read().shape) for name, weight in self._weights.items()}
        with Folder(source, key) as folder:
            found = match(folder.shapes, shapes, folder.tied, tied)
        if not found.complete:
            raise UserError(key, str(found), f"null, or find every tensor of the student in {source}")
        self._source_names = dict(found.pairs)
        matrices = [name for name in self._source_names if len(shapes[name]) == 2 and 0 not in shapes[name]]
        # The largest first, so that the ranks of a round have about as much to do.
        matrices.sort(key=lambda name: -shapes[name][0] * shapes[name][1])
        self.shapes = {name: shapes[name] for name in matrices}

    def parameter(self, name: str) -> torch.nn.Parameter | None:
        """The parameter that a matrix is, None if it is computed from several or not trained."""
        weight = self._weights[name]
        found = weight.parameters[0] if weight.plain and weight.parameters else None
        return found if isinstance(found, torch.nn.Parameter) and found.requires_grad else None

    def mine(self, names: Iterable[str], step: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, θ₀, θ) of the matrices that this rank deals with, one at a time: each is one rank's.

        A collective where weights are in shards: every rank asks for the same names and goes through to the end.

        Raises:
            RunError: a matrix of this rank is not finite, at optimizer step ``step``.
        """
        wanted, ranks = set(names), distributed.world_size()
        order = [name for name in self.shapes if name in wanted]
        with Folder(self.source, self.key) as folder:
            for start in range(0, len(order), ranks):
                for owner, name in enumerate(order[start : start + ranks]):
                    own, weight = owner == distributed.rank(), self._weights[name]
                    if own or _in_shards(weight):
                        now = _read(weight)
                    if own:
                        kept = name, now
                if start + distributed.rank() < len(order):
                    name, now = kept
                    if not bool(now.isfinite().all()):
                        raise RunError(f"`{name}` holds NaN or infinity at step {step}; the last checkpoint is intact.")
                    yield name, folder.tensor(self._source_names[name]).to(now.device), now


def _in_shards(weight: Weight) -> bool:
    return any(sharding.piece(parameter) is not None for parameter in weight.parameters)


def _read(weight: Weight) -> Tensor:
    if weight.plain and weight.parameters:
        return sharding.master(weight.parameters[0])
    # Merging an adapter takes the whole layer.
    with sharding.gathered(weight.parameters):
        return weight.read()
