"""Random masks of a run's student, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from distill import maskfile, training
from distill.analysis.fingerprint import of_model
from distill.analysis.live import live_weights
from distill.maskfile import MaskFile, Provenance


def write(path: Path, config: dict[str, Any], density: float, seed: int = 0, empty: int | None = 1) -> Path:
    """A mask of about ``density`` of each tensor of a run's student, but for an ``empty`` and a full one beside it."""
    lm, _ = training.build_models(config)
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for number, (name, weight) in enumerate(live_weights(lm.model)[0].items()):
        share = density if empty is None else {empty: 0.0, empty + 1: 1.0}.get(number, density)
        masks[name] = maskfile.pack(torch.rand(weight.read().shape, generator=generator) < share)
    maskfile.write(path, masks, Provenance("random", of_model(lm.model), "test"))
    return path


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


def check(path: Path, start: Path, end: Path) -> None:
    """Outside the mask, and in buffers, no bit changed between two folders; inside of it one did in most tensors."""
    mask, before, after = MaskFile(path, "mask"), *(load_file(f / "model.safetensors") for f in (start, end))
    assert set(before) == set(after) >= set(mask.names)
    assert all(torch.equal(after[name], before[name]) for name in set(after) - set(mask.names))
    moved = 0
    for name in mask.names:
        selected = mask.mask(name)
        # A master is the bf16 weight's value in fp32, where nothing has moved it.
        changed = bits(after[name]) != bits(before[name].to(after[name].dtype))
        assert not changed[~selected].any(), name
        moved += bool(changed.any())
    assert moved > len(mask.names) / 2
