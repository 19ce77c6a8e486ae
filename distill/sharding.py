"""Weights that DeepSpeed keeps in shards: gathering them for a while, and this rank's share of each.

Works on parameters alone: what DeepSpeed has attached to them tells how they are kept. Without DeepSpeed, or where a
rank holds the whole weights, every context does nothing. Everything that gathers is a collective.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill import distributed
from distill.errors import RunError


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """True where a rank holds only its shard of some of these parameters now (ZeRO-3, not gathered)."""
    # DeepSpeed's status of a parameter; by name, because importing its enumeration loads all of DeepSpeed.
    found = (getattr(parameter, "ds_status", None) for parameter in parameters)
    return any(status is not None and status.name != "AVAILABLE" for status in found)


@contextmanager
def gathered(parameters: Iterable[Tensor]) -> Iterator[None]:
    """The parameters in full on every rank, to be read."""
    missing = [p for p in parameters if is_sharded([p])]
    if not missing:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(missing):
        yield


@contextmanager
def whole(*models: nn.Module) -> Iterator[None]:
    """Models of one engine in full on every rank, without DeepSpeed's hooks: ranks may call them as often as each
    likes."""
    parameters = [parameter for model in models for parameter in model.parameters()]
    if not is_sharded(parameters):
        yield
        return
    with _without_hooks(models[0]), gathered(parameters):
        yield


@contextmanager
def by_layer(*models: nn.Module, backward: bool = False) -> Iterator[None]:
    """Models of one engine in shards, of which one layer at a time is gathered while it runs, ``backward``, too, if
    asked for.

    Every rank has to call each equally often. DeepSpeed's own hooks do the same, but they expect training passes:
    they record the order of the modules to prefetch by it, and a decode loop would grow that record without end.
    """
    if not is_sharded(parameter for model in models for parameter in model.parameters()):
        yield
        return
    with _without_hooks(models[0]), ExitStack() as hooks, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for unit in (unit for model in models for unit in _units(model)):
            made = _gather_while_running(unit) + (_gather_while_walked_back(unit, hooks) if backward else [])
            for hook in made:
                hooks.callback(hook.remove)
        yield


def _units(model: nn.Module) -> list[nn.Module]:
    """Modules gathered at once: the layers of a stack, and every module outside of one that has parameters itself."""
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        if isinstance(module, nn.ModuleList):
            found.extend(module)
            return
        # What a ParameterDict holds is used by its owner (LoRA on embeddings); the dictionary itself is never called.
        holders = (nn.ParameterDict, nn.ParameterList)
        if any(True for _ in module.parameters(recurse=False)) or any(
            isinstance(c, holders) for c in module.children()
        ):
            found.append(module)
        for child in module.children():
            walk(child)

    walk(model)
    return found


def _gather_while_running(unit: nn.Module) -> list[Any]:
    held: list[ExitStack] = []

    def before(module: nn.Module, *_: Any) -> None:
        stack = ExitStack()
        stack.enter_context(gathered(module.parameters()))
        held.append(stack)

    def after(*_: Any) -> None:
        held.pop().close()

    return [unit.register_forward_pre_hook(before), unit.register_forward_hook(after, always_call=True)]


def _gather_while_walked_back(unit: nn.Module, end: ExitStack) -> list[Any]:
    """Gathers from when the output's gradients are known until the input's are; to the ``end`` where it has none."""
    held = end.enter_context(ExitStack())

    def before(module: nn.Module, *_: Any) -> None:
        held.enter_context(gathered(module.parameters()))

    def after(module: nn.Module, inputs: Any, *_: Any) -> None:
        if any(gradient is not None for gradient in inputs):
            held.pop_all().close()

    return [unit.register_full_backward_pre_hook(before), unit.register_full_backward_hook(after)]


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """DeepSpeed's hooks fetch and release each module's weights; they are put back afterwards."""
    offload = _offload(model)
    # Weights that the last pass has left gathered belong to the hooks.
    offload.partition_all_parameters()
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        offload._register_deepspeed_module(offload.module)


def _offload(model: nn.Module) -> Any:
    """DeepSpeed's object that owns the hooks: an optimizer's, or an optimizer-less engine's own."""
    for parameter in model.parameters():
        if hasattr(parameter, OFFLOAD):
            return getattr(parameter, OFFLOAD)
        if hasattr(parameter, "_z3_optimizer"):
            return parameter._z3_optimizer.parameter_offload
    raise ValueError("the model is not in shards")


OFFLOAD = "_distill_offload"
"""Attribute of the parameters of an optimizer-less engine, as ``_z3_optimizer`` is of those that are trained."""


@dataclass(frozen=True)
class Piece:
    """Coordinates ``[start, start + len(values))`` of a flattened parameter, in fp32 where DeepSpeed has a master."""

    start: int
    values: Tensor


def piece(parameter: Tensor) -> Piece | None:
    """This rank's share of a parameter kept in shards, None if the rank holds (and measures) the whole.

    Under ZeRO-3 that is its shard; under ZeRO-1 and 2 with fp32 masters its part of the master, which may be empty.
    """
    if hasattr(parameter, "ds_tensor"):
        return _zero3_piece(parameter)
    if parameter.dtype != torch.float32 and hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        if mapping is None:
            return Piece(0, parameter.new_empty(0, dtype=torch.float32))
        return Piece(mapping.lp_fragment_address.start, mapping.get_hp_fragment())
    return None


def _zero3_piece(parameter: Any) -> Piece:
    shard = parameter.ds_tensor
    if parameter.requires_grad:
        shard = parameter._z3_optimizer.get_local_fp32_param(parameter)
    shard = shard.detach().reshape(-1)
    size = parameter.ds_tensor.ds_numel
    # The last ranks' shards are filled up to equal size.
    start = distributed.rank() * size
    return Piece(start, shard[: max(0, min(size, parameter.ds_numel - start))])


def master(parameter: Any) -> Tensor:
    """A parameter in full on every rank, in fp32 where DeepSpeed has a master. A collective where it is in shards."""
    part = piece(parameter)
    if part is None:
        return torch.Tensor.detach(parameter)
    shape = getattr(parameter, "ds_shape", parameter.shape)
    full = torch.zeros(math.prod(shape), dtype=part.values.dtype, device=part.values.device)
    full[part.start : part.start + len(part.values)] = part.values
    return distributed.all_sum(full).reshape(shape)


FLAT_GROUPS = (
    ("fp16_groups", "fp32_partitioned_groups_flat"),
    ("bit16_groups", "single_partition_of_fp32_groups"),
    ("bf16_groups", "fp32_groups_flat_partition"),
)
"""Attributes of DeepSpeed's optimizers of ZeRO-3, of ZeRO-1 and 2, and of ZeRO-1 with bf16: parameters and masters."""


def flat_groups(zero: Any) -> tuple[list[list[Any]], list[Tensor]]:
    """The parameters of each flat vector of DeepSpeed's optimizer, and this rank's part of the vector's masters.

    Raises:
        RunError: the optimizer is none of those that DeepSpeed had when this was written.
    """
    for groups, flats in FLAT_GROUPS:
        if hasattr(zero, groups) and hasattr(zero, flats):
            return getattr(zero, groups), getattr(zero, flats)
    raise RunError(f"DeepSpeed's {type(zero).__name__} keeps its masters in a way that cannot be taken apart here yet.")


def fragments(parameters: list[Any]) -> Iterator[tuple[Any, int, int, int]]:
    """Each parameter of a flat vector that this rank has a part of: where the part starts in the flat vector and in the
    parameter, and its elements. A rank whose part is empty still needs the scalars."""
    rank, ranks, offset = distributed.rank(), distributed.world_size(), 0
    for parameter in parameters:
        if hasattr(parameter, "ds_id"):
            size = math.ceil(parameter.ds_numel / ranks)
            low = min(rank * size, parameter.ds_numel)
            yield parameter, offset, low, min(size, parameter.ds_numel - low)
            offset += size
        elif (mapping := parameter._hp_mapping) is None:
            yield parameter, 0, 0, 0
        else:
            part = mapping.lp_fragment_address
            yield parameter, mapping.hp_fragment_address.start, part.start, part.numel


def state_on_rank_0(model: nn.Module) -> dict[str, Tensor]:
    """The model's state in CPU memory of rank 0, gathered one weight at a time; empty on other ranks. A collective."""
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with gathered([parameter]):
            if distributed.rank() == 0:
                # Tied names share one copy, as the exporter expects.
                if id(parameter) not in copies:
                    copies[id(parameter)] = parameter.detach().to("cpu", copy=True)
                state[name] = copies[id(parameter)]
    if distributed.rank() == 0:
        kept = model.state_dict().keys()
        state |= {name: buffer.cpu() for name, buffer in model.named_buffers() if name in kept}
    return state


def cut(module: nn.Module, config: Any) -> None:
    """Makes shards of a module one weight at a time; DeepSpeed itself would first move all of it to the device.

    A collective; ``config`` is DeepSpeed's.
    """
    import deepspeed

    deepspeed.zero.Init(module=module, config_dict_or_path=config)
    device = next(module.parameters()).device
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = buffer.to(device)


def shard_frozen(module: nn.Module, device: torch.device | str, offload: bool) -> nn.Module:
    """An optimizer-less ZeRO-3 engine around a frozen module, whose weights become shards over the ranks.

    With ``offload`` the shards are in CPU memory, not on ``device``. A collective; the process group exists.
    """
    import deepspeed

    # Without a backward pass nothing is worth keeping for its next use.
    zero: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    if offload:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.device(device).type == "cuda"}
    dtype = next(module.parameters()).dtype
    config = {
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "train_micro_batch_size_per_gpu": 1,
    }
    cut(module, config)
    engine: nn.Module
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    for parameter in module.parameters():
        setattr(parameter, OFFLOAD, engine.optimizer)
    return engine


def held_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters that this rank holds now: its shards, and what is gathered."""
    held = 0
    for parameter in model.parameters():
        for tensor in (parameter.data, getattr(parameter, "ds_tensor", None)):
            held += 0 if tensor is None else tensor.numel() * tensor.element_size()
    return held
