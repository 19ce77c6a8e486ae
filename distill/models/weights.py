"""Checks of a checkpoint's weights: complete files, every tensor there, every number finite."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from distill.errors import UserError

_INDEX = "model.safetensors.index.json"


def check_files(folder: Path, *, allow_pickle: bool, key: str) -> None:
    """Opens each safetensors file of a local model folder; header and length are checked, weights are not read.

    Raises:
        UserError: for a truncated, corrupt or missing file, or a folder with pickled weights only.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / _INDEX
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if not files and not (allow_pickle and any(folder.glob("*.bin"))):
        allowed = f"a folder with safetensors weights (pickled ones need `{key}.allow_pickle=true`)"
        raise UserError(f"{key}.path", str(folder), allowed)
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{key}.path", str(file), f"a complete safetensors file ({error})") from error


def check_complete(missing: Collection[str], *, path: str, key: str) -> None:
    """Refuses a checkpoint that lacks tensors, which transformers would fill at random.

    Raises:
        UserError: naming the first missing tensor.
    """
    if missing:
        allowed = f"a checkpoint with every weight ({len(missing)} missing, first {min(missing)!r})"
        raise UserError(f"{key}.path", path, allowed)


def check_finite(model: nn.Module, *, path: str, key: str) -> None:
    """Refuses NaN and infinities.

    Raises:
        UserError: naming the first tensor that holds one.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{key}.path", path, f"a checkpoint of finite weights ({name!r} holds NaN or infinity)")
