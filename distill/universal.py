"""The state in a checkpoint by parameter name, whatever wrote it: one file, or DeepSpeed's shards of any stage.

Read cold: no process group, no DeepSpeed, and no code of the pickles runs. Files are memory-mapped and a tensor is put
together when it is asked for, so that a rank reads what it needs and holds one tensor at a time.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.errors import UserError

TAG = "checkpoint"
"""Lightning's name for the folder of DeepSpeed's files."""
FLAT12, FLAT3 = "single_partition_of_fp32_groups", "fp32_flat_groups"
"""Where DeepSpeed has a rank's part of the fp32 masters, in the files of ZeRO-1 and 2 and in those of ZeRO-3."""
DEEPSPEED_KEYS = {
    "module",
    "buffer_names",
    "optimizer",
    "param_shapes",
    "frozen_param_shapes",
    "shared_params",
    "frozen_param_fragments",
    "lr_scheduler",
    "data_sampler",
    "random_ltd",
    "skipped_steps",
    "global_steps",
    "global_samples",
    "dp_world_size",
    "mp_world_size",
    "ds_config",
    "ds_version",
}
"""What DeepSpeed puts beside Lightning's part in a file of model states."""


@dataclass(frozen=True)
class Group:
    """An optimizer's parameter group: its settings (``lr``, ``weight_decay`` …) and the parameters it steps."""

    settings: dict[str, Any]
    names: tuple[str, ...]


class State(Protocol):
    """``shapes`` has every tensor of the module by name, tied ones under each; ``client`` is Lightning's own part."""

    client: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    groups: list[Group]

    def weight(self, name: str) -> Tensor:
        """A tensor of the module: the optimizer's master where there is one, else as stored."""

    def moments(self, name: str) -> dict[str, Tensor]:
        """The optimizer's state of a trained parameter, in its shape; scalars such as ``step`` as they are."""


def load(path: Path, order: Sequence[str] = (), key: str = "resume") -> State:
    """Opens the state of a verified checkpoint: a file, or a folder of shards.

    ``order`` names the trained parameters in the optimizer's order; a single file does not say it, and without it has
    groups without names and no moments.

    Raises:
        UserError: named ``key``; the files are not those of a checkpoint.
    """
    try:
        return _Shards(path / TAG) if path.is_dir() else _SingleFile(path, order)
    except (KeyError, IndexError, ValueError, RuntimeError, OSError, pickle.UnpicklingError) as error:
        torch_said = isinstance(error, pickle.UnpicklingError)
        reason = "a file holds more than tensors and plain values" if torch_said else f"{type(error).__name__}: {error}"
        allowed = f"a checkpoint that this program wrote ({reason})"
        raise UserError(key, str(path), allowed) from error


def whole(state: State) -> dict[str, Any]:
    """The state as the one file that a single process and DDP save and load."""
    index = {name: i for i, name in enumerate(name for group in state.groups for name in group.names)}
    groups = [{**group.settings, "params": [index[name] for name in group.names]} for group in state.groups]
    moments = {i: found for name, i in index.items() if (found := state.moments(name))}
    weights = {name: state.weight(name) for name in state.shapes}
    return {**state.client, "state_dict": weights, "optimizer_states": [{"state": moments, "param_groups": groups}]}


class _SingleFile:
    def __init__(self, path: Path, order: Sequence[str]) -> None:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        self._weights: dict[str, Tensor] = content.pop("state_dict")
        [optimizer] = content.pop("optimizer_states")
        self.client = content
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._weights.items()}
        self._moments = {name: optimizer["state"].get(index, {}) for index, name in enumerate(order)}
        self.groups = []
        for group in optimizer["param_groups"]:
            names = tuple(order[index] for index in group["params"]) if order else ()
            self.groups.append(Group({k: v for k, v in group.items() if k != "params"}, names))

    def weight(self, name: str) -> Tensor:
        return self._weights[name]

    def moments(self, name: str) -> dict[str, Tensor]:
        return {key: value for key, value in self._moments[name].items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class _Place:
    """Where a trained parameter is in the flat vectors: of which of them, from which element, how many per rank.

    ZeRO-1 and 2 cut the flat vector of all parameters over the ranks; ZeRO-3 cuts each parameter (``split``).
    """

    vector: int
    start: int
    numel: int
    shape: tuple[int, ...]
    split: bool


class _Shards:
    def __init__(self, folder: Path) -> None:
        models, optimizers = (_by_rank(folder, kind) for kind in ("model", "optim"))
        self._models = [_read(path) for path in models]
        self._optimizers = [_read(path)["optimizer_state_dict"] for path in optimizers]
        first, self._module = self._optimizers[0], self._models[0]["module"]
        if len(optimizers) != _ranks(first["partition_count"]):
            raise ValueError(f"{len(optimizers)} files of optimizer states, not {_ranks(first['partition_count'])}")
        self._split = FLAT3 in first
        self._masters = [state[FLAT3 if self._split else FLAT12] for state in self._optimizers]
        inner = "optimizer_state_dict" if self._split else "base_optimizer_state"
        self._inner = [state[inner] for state in self._optimizers]
        self._places = dict(self._find_places(first.get("param_alignment_paddings")))
        self._tied: dict[str, str] = dict(self._models[0]["shared_params"])
        self._frozen = self._models[0].get("frozen_param_shapes") or {}
        self.client = {k: v for k, v in self._models[0].items() if k not in DEEPSPEED_KEYS}
        self.groups = [self._group(group) for group in self._inner[0]["param_groups"]]
        self.shapes = {name: self._shape(name) for name in self._module}

    def weight(self, name: str) -> Tensor:
        name = self._tied.get(name, name)
        if name in self._places:
            return self._gather(self._places[name], self._masters)
        if self._split and name in self._frozen:
            shards = [model["frozen_param_fragments"][name].reshape(-1) for model in self._models]
            shape = tuple(self._frozen[name])
            return torch.cat(shards)[: math.prod(shape)].reshape(shape)
        tensor: Tensor = self._module[name]
        return tensor

    def moments(self, name: str) -> dict[str, Tensor]:
        place = self._places[name]
        states = [inner["state"].get(place.vector, {}) for inner in self._inner]
        kept = {key: value for key, value in states[0].items() if isinstance(value, Tensor)}
        flat = {key for key, value in kept.items() if value.ndim > 0}
        spread = {key: [{place.vector: state[key]} for state in states] for key in flat}
        # The vector has one scalar for all its parameters; a step that is counted in it by each would run ahead.
        return {key: self._gather(place, spread[key]) if key in flat else value.clone() for key, value in kept.items()}

    def _find_places(self, alignment: list[list[int]] | None) -> Iterator[tuple[str, _Place]]:
        ranks = len(self._optimizers)
        for vector, shapes in enumerate(self._models[0]["param_shapes"]):
            start = 0
            for position, (name, size) in enumerate(shapes.items()):
                shape = tuple(size)
                numel = math.prod(shape)
                yield name, _Place(vector, start, numel, shape, self._split)
                start += math.ceil(numel / ranks) if self._split else numel
                if not self._split and alignment:
                    start += alignment[vector][position]

    def _group(self, group: dict[str, Any]) -> Group:
        vectors = set(group["params"])
        names = tuple(name for name, place in self._places.items() if place.vector in vectors)
        return Group({k: v for k, v in group.items() if k != "params"}, names)

    def _shape(self, name: str) -> tuple[int, ...]:
        actual = self._tied.get(name, name)
        if actual in self._places:
            return self._places[actual].shape
        return tuple(self._frozen[actual] if actual in self._frozen else self._module[actual].shape)

    def _gather(self, place: _Place, ranks: Sequence[Any]) -> Tensor:
        """A parameter out of every rank's part of its vector, in fp32."""
        parts: list[Tensor] = [vectors[place.vector].detach() for vectors in ranks]
        if place.split:
            size = math.ceil(place.numel / len(parts))
            flat = torch.cat([part[place.start : place.start + size] for part in parts])[: place.numel]
        else:
            flat = _span(parts, place.start, place.numel)
        return flat.reshape(place.shape)


def _span(parts: Sequence[Tensor], start: int, numel: int) -> Tensor:
    """``numel`` elements from ``start`` on of the parts one after another, without joining all of them."""
    found, offset = [], 0
    for part in parts:
        low, high = max(start - offset, 0), min(start + numel - offset, len(part))
        if low < high:
            found.append(part[low:high])
        offset += len(part)
    joined = torch.cat(found)
    if len(joined) != numel:
        raise ValueError(f"a flat vector ends {numel - len(joined)} elements early")
    return joined


def _by_rank(folder: Path, kind: str) -> list[Path]:
    """The files of one kind in the order of ranks (the stages 1 and 2 have one file of model states)."""
    files = list(folder.glob(f"*_{kind}_states.pt"))
    return sorted(files, key=lambda path: [int(part) for part in path.stem.split("_") if part.isdigit()])


def _ranks(count: int | list[int]) -> int:
    return max(count) if isinstance(count, list) else count


class _Inert:
    """Stands in for every class of DeepSpeed in its pickles: takes what is given, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass


def _read(path: Path) -> dict[str, Any]:
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content
