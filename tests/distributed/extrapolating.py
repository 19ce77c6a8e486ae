"""Ranks that train runs in turn and watch what extrapolation writes.

``watched-RANK.json`` in a run directory has a record for each step at which something was tried.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill import distributed, sharding
from distill.callbacks.extrapolation import Extrapolation
from distill.commands import train
from distill.masters import Masters
from distill.rollouts import decode
from tests.distributed.worker import Runs

Records = list[dict[str, Any]]
seen: list[list[Tensor]] = []
records: Records = []
original_sample = decode.sample
original_score, original_step = Extrapolation._score, Extrapolation.on_step


BROKEN = "broken"
"""In the name of a run in which rank 1 alone sees candidates whose logits are not finite."""


def score(self: Extrapolation, now: list[Tensor], k: int) -> float:
    if k and distributed.rank() == 1 and BROKEN in self.folder.parent.name:
        decode.sample = lambda logits, *given: original_sample(logits * torch.nan, *given)
    found = original_score(self, now, k)
    decode.sample = original_sample
    seen.append(self._masters.read())
    return found


def on_step(self: Extrapolation, trainer: Any, pl_module: Any, step: int) -> None:
    seen.clear()
    optimizer = trainer.optimizers[0]
    inner = optimizer.optimizer if trainer.strategy.handles_gradient_accumulation else optimizer
    before = moments(inner)
    original_step(self, trainer, pl_module, step)
    if seen:
        accepted = int(pl_module._recorded["extrapolation/accepted"])
        records.append(
            {
                "step": step,
                "tried": len(seen) - 1,
                "accepted": accepted,
                "held": digests(self._masters.read()) == digests(seen[accepted]),
                "moments": len(before) > 0 and moments(inner) == before,
                "consistent": consistent(self._masters, pl_module.lm.model),
                "bytes": sum(tensor.nbytes for tensor in self._base),
            }
        )


def digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()


def digests(tensors: Iterable[Tensor]) -> list[str]:
    return [digest(tensor) for tensor in tensors]


def moments(optimizer: Any) -> list[str]:
    return digests(value for state in optimizer.state.values() for value in state.values())


def consistent(masters: Masters, model: torch.nn.Module) -> bool:
    """Every rank sees the same weights in full, and they are what the masters round to."""
    with sharding.gathered(model.parameters()):
        own = all(
            torch.equal(part.parameter.detach().reshape(-1)[part.low :][: part.numel], master.to(part.parameter.dtype))
            for part, master in zip(masters.parts, masters.read(), strict=True)
        )
        whole = digests(model.parameters())
    return own and all(theirs == whole for theirs in distributed.gather_objects(whole))


def train_all(runs: Runs) -> int:
    torch.set_num_threads(1)
    # A report takes as long as a run, and is not looked at.
    train._finish = lambda *_, **__: None
    Extrapolation._score, Extrapolation.on_step = score, on_step  # type: ignore[method-assign]
    for config, run_dir in runs:
        records.clear()
        assert train.run(config, Path(run_dir)) == 0
        Path(run_dir, f"watched-{distributed.rank()}.json").write_text(json.dumps(records))
    return 0
