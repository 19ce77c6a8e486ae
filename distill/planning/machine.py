"""The machine a run is planned for: ranks and memory, from the configuration or from this one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from distill.config.schema_plan import size_in_bytes
from distill.config.world import world_size

OTHER = 25 << 20
"""Bytes that a training process adds to its imports before the first step, measured: Lightning's trainer, the model's
own module, kernels of matrix products."""


@dataclass(frozen=True)
class Machine:
    """``device_memory`` is that of one GPU, or of a machine whose ``ranks_per_node`` CPU ranks share it; None: unknown.

    ``baseline`` is what a process holds before it has a model. Sizes are bytes.
    """

    ranks: int
    ranks_per_node: int
    gpu: bool
    device_memory: int | None
    host_memory: int
    baseline: int

    @property
    def limit(self) -> int | None:
        """What one rank may hold on its device."""
        if self.gpu:
            return self.device_memory
        return (self.device_memory or self.host_memory) // self.ranks_per_node


def describe(config: dict[str, Any], baseline: int) -> Machine:
    """Keys left at null are this machine's, or the launcher's."""
    options, accelerator = config["plan"], config["trainer"]["accelerator"]
    ranks = options["devices"] or world_size()
    gpu = options["gpu"]
    if gpu is None:
        gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    device = _size(options["device_memory"])
    if device is None and gpu and torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0).total_memory
    host = _size(options["host_memory"]) or psutil.virtual_memory().total
    # A launcher says how many of its ranks share this machine.
    local = options["devices_per_node"] or (
        ranks if options["devices"] else int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    )
    return Machine(ranks, local, gpu, device, host, baseline)


def resident() -> int:
    """Bytes this process holds in memory now."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


def _size(text: str | None) -> int | None:
    return None if text is None else size_in_bytes(text)
