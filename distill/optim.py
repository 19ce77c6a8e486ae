"""The optimizer and its schedule, from plain values."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from distill.masked_optim import COMPACT_BELOW, MaskedOptimizer

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices decay, vectors (norm scales, biases) do not."""
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build(
    parameters: Iterable[nn.Parameter],
    *,
    name: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    momentum: float,
    schedule: str,
    warmup_steps: int,
    max_steps: int,
    density: float | None = None,
    beside: Iterable[tuple[Iterable[nn.Parameter], float | None]] = (),
) -> tuple[Optimizer, LRScheduler]:
    """AdamW or SGD over the trainable parameters, and a schedule counted in optimizer steps.

    With the ``density`` of a mask it steps what the mask selects alone, once it has been told. ``beside`` are networks
    that are trained together with the one of ``parameters``, each in groups of its own with its own rate (None: the
    same); all follow one schedule.
    """
    groups = parameter_groups(parameters, weight_decay)
    for others, rate in beside:
        groups += [group | {"lr": lr if rate is None else rate} for group in parameter_groups(others, weight_decay)]
    optimizer: Optimizer
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    if density is not None:
        optimizer = MaskedOptimizer(optimizer, compact=density < COMPACT_BELOW)
    scheduler = get_scheduler(
        SCHEDULES[schedule], optimizer, num_warmup_steps=warmup_steps, num_training_steps=max_steps
    )
    return optimizer, scheduler
