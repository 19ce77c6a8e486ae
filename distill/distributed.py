"""The only user of ``torch.distributed``. Without a process group every function is the identity of one rank."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank in the process group, else what the launcher (torchrun, srun) says, else 0."""
    if initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) if launched() else 0)


def world_size() -> int:
    """Number of ranks in the process group, or as announced by the launcher before it exists."""
    if initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """True when a launcher started this process as one rank of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def all_sum(value: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, on the tensor's own device. Integers stay exact; the argument is left alone."""
    if not initialized() or dist.get_world_size() == 1:
        return value
    total = value.detach().to(_device(), copy=True)
    dist.all_reduce(total)
    return total.to(value.device)


def all_max(value: int) -> int:
    """Largest of a small integer over all ranks (used to agree on a flag)."""
    if not initialized() or dist.get_world_size() == 1:
        return value
    flag = torch.tensor(value, device=_device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


def gather_objects(value: object) -> list[object]:
    """Every rank's picklable value, in rank order, on every rank."""
    if not initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    if initialized():
        dist.barrier()


def _device() -> torch.device:
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
