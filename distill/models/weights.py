"""Checks of a checkpoint's weights: complete files, every tensor there, every number finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
        files = [folder / name for name in _shards(index, key)]
    if not files and not (allow_pickle and any(folder.glob("*.bin"))):
        allowed = f"a folder with safetensors weights (pickled ones need `{key}.allow_pickle=true`)"
        raise UserError(f"{key}.path", str(folder), allowed)
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{key}.path", str(file), f"a complete safetensors file ({error})") from error


def _shards(index: Path, key: str) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{key}.path", str(index), "a readable index of weight files") from error


def check_complete(report: dict[str, Any], *, path: str, key: str) -> None:
    """Refuses a checkpoint without some tensor, or with one of another shape: transformers fills both at random.

    ``report`` is the loading info of ``from_pretrained``.

    Raises:
        UserError: naming the first such tensor.
    """
    if missing := report["missing_keys"]:
        allowed = f"a checkpoint with every weight ({len(missing)} missing, first {min(missing)!r})"
        raise UserError(f"{key}.path", path, allowed)
    if report["mismatched_keys"]:
        name, stored, configured = min(report["mismatched_keys"])
        shapes = f"{name!r} is {list(stored)} in the file, {list(configured)} by the configuration"
        raise UserError(f"{key}.path", path, f"a checkpoint that fits its configuration ({shapes})")


def check_finite(model: nn.Module, *, path: str, key: str) -> None:
    """Refuses NaN and infinities.

    Raises:
        UserError: naming the first tensor that holds one.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{key}.path", path, f"a checkpoint of finite weights ({name!r} holds NaN or infinity)")
