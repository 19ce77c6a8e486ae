"""Trains the coordinates of a mask alone, and makes sure that all others are θ₀, bit by bit (arXiv 2606.13657)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from distill import distributed, watchdog
from distill.analysis.live import live_weights
from distill.analysis.source import Folder, match
from distill.callbacks.steps import StepCallback, is_last
from distill.errors import RunError
from distill.partitions import Part, Vector, ZeroGradients, of_parameters, of_zero
from distill.selection import integers

KEYS = ("mask/density", "mask/state_bytes", "mask/dense_state_bytes", "mask/violations", "time/mask")
"""Keys recorded. At step 0: the share of the coordinates that train, the bytes of optimizer state, fp32 masters and
masks over all ranks, and what the state of all coordinates would take. Whenever frozen coordinates are compared with θ₀
(at every checkpoint and at the end): how many differ, which is 0 or ends the run, and the seconds that took."""
KEY = "callbacks.update_mask"

log = logging.getLogger(__name__)


class UpdateMask(StepCallback):
    """``masks`` gives each parameter's mask by name, ``checksum`` identifies them, ``source`` is the folder of θ₀.

    The optimizer is a ``MaskedOptimizer``: it gets its masks here, once the strategy is set up, for whole parameters or
    this rank's flat vectors. Gradients are masked after accumulation and reduction and before clipping: by the
    optimizer itself, or under DeepSpeed, which clips in its own step, by this callback.
    Frozen coordinates are compared every ``every_n_steps`` (as often as checkpoints are saved), at the last step,
    before anybody else saves and before the student is exported, whoever ended the run; under ZeRO on masters and
    weights, on each rank its share, otherwise on every replica. Buffers that a checkpoint holds are compared, too.
    """

    label = "mask"

    def __init__(
        self,
        source: Path,
        masks: Callable[[str], Tensor],
        *,
        checksum: str,
        density: float,
        every_n_steps: int | None,
    ) -> None:
        self.source, self.masks, self.checksum, self.density = source, masks, checksum, density
        self.every_n_steps = every_n_steps
        self._trained: dict[str, Tensor] = {}
        self._sources: dict[str, str] = {}
        self._buffers: dict[str, Callable[[], Tensor]] = {}
        self._vectors: list[Vector] = []
        self._gradients: ZeroGradients | None = None
        self._verified = -1

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        weights, tied = live_weights(pl_module.lm.model)
        shapes = {name: tuple(weight.read().shape) for name, weight in weights.items()}
        with Folder(self.source, KEY) as folder:
            pairs = match(folder.shapes, shapes, folder.tied, tied).pairs
        self._trained = {name: weights[name].parameters[0] for name, _ in pairs if weights[name].parameters}
        self._buffers = {name: weights[name].read for name, _ in pairs if not weights[name].parameters}
        self._sources = dict(pairs)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        optimizer: Any = trainer.optimizers[0]
        sharded = trainer.strategy.handles_gradient_accumulation
        self._optimizer = optimizer.optimizer if sharded else optimizer
        self._vectors = of_zero(optimizer, self._trained) if sharded else of_parameters(self._trained)
        for vector in self._vectors:
            self._optimizer.assign(vector.values, vector.mask(self.masks))
        if sharded:
            self._gradients = ZeroGradients(optimizer, self._vectors, self._optimizer.selected, self.masks)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        ours, dense = distributed.all_sum(torch.tensor(self._optimizer.bytes())).tolist()
        form = "a compact state" if self._optimizer.compact else "a state of all coordinates"
        kind = f"masked {self._optimizer.name} with {form}"
        log.info("%.3g %% of the coordinates train: %s, %d bytes (dense: %d)", 100 * self.density, kind, ours, dense)
        if trainer.global_step == 0:
            sizes = {"mask/state_bytes": float(ours), "mask/dense_state_bytes": float(dense)}
            pl_module.record({"mask/density": self.density, **sizes})

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        engine: Any = trainer.strategy
        if self._gradients is not None and engine.deepspeed_engine.is_gradient_accumulation_boundary():
            self._gradients.mask()

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if is_last(trainer, step) or (self.every_n_steps is not None and step % self.every_n_steps == 0):
            began = time.perf_counter()
            self.verify(step)
            pl_module.record({"mask/violations": 0.0, "time/mask": time.perf_counter() - began})

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Somebody else's checkpoint, between ours.
        if self._verified != trainer.global_step:
            self.verify(trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Ended by another callback, or resumed with nothing left to do: what follows is the export.
        if self._verified != trainer.global_step:
            with watchdog.phase(self.label):
                self.verify(trainer.global_step)

    def verify(self, step: int) -> None:
        """Raises a RunError if a coordinate outside of the mask is not the one of θ₀. A collective."""
        counts = dict.fromkeys(self._sources, 0)
        with Folder(self.source, KEY) as folder:
            for vector in self._vectors:
                frozen = ~self._optimizer.selected(vector.values)
                for part in (part for part in vector.parts if part.numel):
                    counts[part.name] += _changed(part, vector, frozen, folder.tensor(self._sources[part.name]))
            for name, read in self._buffers.items():
                differs = _differs(read().reshape(-1), folder.tensor(self._sources[name]).reshape(-1))
                counts[name] = int((differs.cpu() & ~self.masks(name).reshape(-1)).sum())
        of_ranks: list[Any] = distributed.gather_objects(list(counts.values()))
        for name, found in zip(counts, zip(*of_ranks, strict=True), strict=True):
            # Replicas of one coordinate are one coordinate; shards are parts of a whole.
            replicas = self._gradients is None or name in self._buffers
            if count := max(found) if replicas else sum(found):
                text = f"{count} coordinates outside the mask are not those of {self.source} at step {step}"
                raise RunError(f"`{name}`: {text}; nothing of this step is saved, earlier checkpoints are intact.")
        self._verified = step

    def state_dict(self) -> dict[str, Any]:
        return {"mask": self.checksum}


def _changed(part: Part, vector: Vector, frozen: Tensor, start: Tensor) -> int:
    """Frozen coordinates of a part whose bits differ from θ₀'s, in the optimizer's tensor or in the weights."""
    where = slice(part.start, part.start + part.numel)
    stepped = vector.values.detach().reshape(-1)[where]
    expected = start.reshape(-1)[part.low : part.low + part.numel]
    differs = torch.zeros(part.numel, dtype=torch.bool, device=stepped.device)
    for values in (stepped, part.weights.to(stepped.device)):
        differs |= _differs(values, expected)
    return int((differs & frozen[where]).sum())


def _differs(values: Tensor, expected: Tensor) -> Tensor:
    """Where the bits of ``values`` are not those that ``expected`` has in their dtype."""
    return integers(values) != integers(expected.to(values.device, values.dtype))
