"""The only user of ``torch.distributed``. Without a process group every function is the identity of one rank."""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore

from distill.errors import RunError, UserError

A_DAY = timedelta(days=1)
GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer")
"""Words of the RuntimeErrors that gloo raises in a rank whose peer is gone, or has not come in time."""


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


def store(timeout: float) -> Any:
    """The store at MASTER_ADDR, where the ranks of this run meet; ``timeout`` is in seconds.

    It is there as soon as rank 0 is, so that it can be asked who has come.

    Raises:
        UserError: the launcher has not said where rank 0 is.
        RunError: rank 0 does not answer.
    """
    if _watched.store is not None:
        return _watched.store
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(name, None, "set in each of several processes, as torchrun and launch/ do")
    # torchrun has a store of its own, which outlives rank 0 and the attempts of a run.
    theirs = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    host, port, waits = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=timeout)
    try:
        if rank() != 0:
            _knock(host, port, timeout)
        found = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, None, rank() == 0 and not theirs, waits, wait_for_workers=False, multi_tenant=True
        )
    except (dist.DistError, OSError) as error:
        text = f"rank 0 has not answered at {host}:{port} within {timeout:.0f} s (`trainer.startup_timeout`)."
        if rank() == 0:
            text = f"rank 0 cannot listen at {host}:{port} (MASTER_ADDR, MASTER_PORT): is the port in use?"
        raise RunError(text) from error
    _watched.store = PrefixStore(f"attempt/{attempt}", found)
    return _watched.store


def _knock(host: str, port: int, timeout: float) -> None:
    """Waits until somebody answers at a port: torch's client would write a page for every attempt that fails."""
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=max(until - time.monotonic(), 1)).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def part(whole: Any, name: str) -> Any:
    """The part of a store that ``name`` has for itself."""
    return PrefixStore(name, whole)


def join(whole: Any, backend: str, timeout: float) -> None:
    """Makes the process group that Lightning and DeepSpeed find; its collectives fail after ``timeout`` seconds."""
    if not initialized():
        if backend == "nccl":
            # Lightning chooses it too, but there are collectives before it does.
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        store, waits = PrefixStore("group", whole), timedelta(seconds=timeout)
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=waits)
        # NCCL complains of a group that is left to the end of the process.
        atexit.register(_destroy)
    set_timeout(timeout)


def set_timeout(timeout: float) -> None:
    """Seconds after which a library's collective that has not succeeded fails, from now on, in every group.

    Those of this file wait as long as the rank they wait for gets on, which is for the watchdog to judge. torch offers
    this for single groups only, in a function whose name begins with an underscore, and lists the groups nowhere else:
    ``tests/unit/test_distributed.py`` holds torch to both.
    """
    _watched.seconds = timeout
    for group in list(distributed_c10d._world.pg_map) if initialized() else []:
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout), group)


class _Watched:
    """The store of all runs of this process, and what :func:`set_timeout` has set; None without a watchdog."""

    store: Any = None
    seconds: float | None = None


_watched = _Watched()


@contextmanager
def _patient() -> Iterator[None]:
    """Within it a collective waits for a rank whose rollout, evaluation or export takes long."""
    if _watched.seconds is None:
        yield
        return
    distributed_c10d._set_pg_timeout(A_DAY)
    try:
        yield
    finally:
        distributed_c10d._set_pg_timeout(timedelta(seconds=_watched.seconds))


@contextmanager
def patient_libraries() -> Iterator[None]:
    """Within it the collectives of libraries, too, leave it to the watchdog how long they wait."""
    seconds = _watched.seconds
    if seconds is None:
        yield
        return
    set_timeout(A_DAY.total_seconds())
    try:
        yield
    finally:
        set_timeout(seconds)


def lost_peer(error: BaseException) -> bool:
    """Whether this is how a collective fails where another rank is gone or does not come."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in GLOO)


def _destroy() -> None:
    if initialized():
        dist.destroy_process_group()


def all_sum(value: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, on the tensor's own device. Integers stay exact; the argument is left alone."""
    if not initialized() or dist.get_world_size() == 1:
        return value
    total = value.detach().to(_device(), copy=True)
    with _patient():
        dist.all_reduce(total)
    return total.to(value.device)


def all_max(value: int) -> int:
    """Largest of a small integer over all ranks (used to agree on a flag)."""
    if not initialized() or dist.get_world_size() == 1:
        return value
    flag = torch.tensor(value, device=_device())
    with _patient():
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


def gather_objects(value: object) -> list[object]:
    """Every rank's picklable value, in rank order, on every rank."""
    if not initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[object] = [None] * dist.get_world_size()
    with _patient():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    if initialized():
        with _patient():
            dist.barrier()


def _device() -> torch.device:
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
