"""What data that models made or chose are made from: the settings that a resumed command must have kept."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from distill.analysis.fingerprint import of_model
from distill.config.flat import flat
from distill.data.base import Dataset
from distill.errors import UserError
from distill.models import CausalLM, tokenizers


def device(accelerator: str) -> torch.device:
    """Where this rank's models run; each rank of a machine takes a GPU of its own.

    Raises:
        UserError: there is no GPU for it.
    """
    number, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if accelerator == "cpu" or (accelerator == "auto" and found == 0):
        return torch.device("cpu")
    if number >= found:
        allowed = f"'cpu', or the processes fewer: this machine shows {found} GPUs to its process {number + 1}"
        raise UserError("accelerator", accelerator, allowed)
    return torch.device("cuda", number)


def place(lm: CausalLM, where: torch.device) -> None:
    """Moves a model to where it is asked."""
    model: nn.Module = lm.model
    model.to(where)


def settings(config: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """The configuration by dotted key, without what may differ when a command goes on."""
    return {key: value for key, value in flat(dict(config)) if key not in free}


def made_from(
    models: Mapping[str, CausalLM], data: Dataset, held_out: Dataset, where: torch.device
) -> dict[str, str | None]:
    """Fingerprints of everything that decides about the result beside the configuration."""
    tokenizer = next(iter(models.values())).tokenizer
    return {
        **{f"{name} weights": of_model(lm.model) for name, lm in models.items()},
        "tokenizer": tokenizers.fingerprint(tokenizer),
        "chat template": tokenizers.template_hash(tokenizer),
        "training data": data.fingerprint(),
        "held-out data": held_out.fingerprint(),
        "device": where.type,
    }
