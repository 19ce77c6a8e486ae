"""Training confined to the subspace of the early update: gradients are projected on it after a warm-up.

2606.07082 reports that the top subspace of an update settles early. This trains on it alone: our formulation, as the
paper's own constraint is not public in detail.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from distill import distributed
from distill.analysis.confine import Subspace, energy
from distill.analysis.decompose import decompose
from distill.analysis.subspace import similarity
from distill.callbacks.steps import StepCallback
from distill.callbacks.updates import Updates
from distill.errors import RunError, UserError

KEYS = (
    "subspace/gradient_energy",
    "subspace/microbatch_gradient_energy",
    "subspace/step_energy_outside",
    "subspace/update_energy",
    "subspace/top_energy",
    "subspace/stable_rank",
    "subspace/similarity",
    "time/subspace",
)
"""Keys recorded once gradients are projected. Shares of energy over all confined matrices: of the gradient inside the
subspace (before the projection; under ZeRO that of the micro-batches' gradients on each rank), of the step outside of
it, of Δ inside of it. Means over the matrices: energy of Δ's top K directions, its stable rank ‖Δ‖²/σ₁², similarity of
its top K right directions now to the subspace. Then the seconds that took."""
KEY = "callbacks.gradient_subspace"


class GradientSubspace(StepCallback):
    """After step ``warmup_steps``, replaces the gradient of every trained matrix by its projection on the subspace of
    the top ``rank`` singular vectors of Δ = θ - θ₀ at that step: g ← gVVᵀ, with ``side`` "both" g ← UUᵀgVVᵀ.

    Vectors (norms, biases) stay free. The projection precedes clipping, and is linear, so that it may be applied to
    each micro-batch of each rank: DeepSpeed sums gradients on its own, and gets projected ones from hooks. The
    optimizer's step is not confined by its gradient being so: Adam divides coordinate by coordinate, and moments and
    weight decay of before the projection linger. ``subspace/step_energy_outside`` tells by how much.
    Subspaces are saved with checkpoints, so that a resumed run goes on in the same one.
    """

    label = "subspace"

    def __init__(
        self, source: Path, *, warmup_steps: int, rank: int, side: Literal["right", "both"], every_n_steps: int
    ) -> None:
        self.source, self.every_n_steps = source, every_n_steps
        self.warmup_steps, self.rank, self.side = warmup_steps, rank, side
        self.subspaces: dict[str, Subspace] = {}
        self._names: dict[str, torch.nn.Parameter] = {}
        self._before: dict[str, Tensor] = {}
        self._energies: list[Tensor] = []
        self._looking = False
        self._hooked = False

    @property
    def choice(self) -> dict[str, Any]:
        """What decides which subspaces there are."""
        return {"warmup_steps": self.warmup_steps, "rank": self.rank, "side": self.side}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Finds the matrices. Raises UserError if the student does not fit its source or none is trained."""
        self.updates = Updates(pl_module.lm.model, self.source, KEY)
        found = {name: self.updates.parameter(name) for name in self.updates.shapes}
        self._names = {name: parameter for name, parameter in found.items() if parameter is not None}
        if not self._names:
            raise UserError(KEY, self.choice, "null for a student none of whose matrices is trained itself")
        self._hooked = trainer.strategy.handles_gradient_accumulation
        if self._hooked:
            # DeepSpeed takes gradients away as they come.
            for name, parameter in self._names.items():
                parameter.register_hook(partial(self._projected, name))

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        step, self._device = trainer.global_step, pl_module.device
        if not self.subspaces and step > self.warmup_steps:
            allowed = f"at least {step}, as many steps as the checkpoint has taken without a subspace"
            raise UserError(f"{KEY}.warmup_steps", self.warmup_steps, allowed)
        self._place()
        self._prepare(trainer, step)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._hooked or not self.subspaces:
            return
        for name, parameter in self._names.items():
            if parameter.grad is not None:
                parameter.grad.copy_(self._projected(name, parameter.grad))

    def _projected(self, name: str, gradient: Tensor) -> Tensor:
        subspace = self.subspaces.get(name)
        if subspace is None:
            return gradient
        if self._looking:
            self._energies.append(torch.stack([subspace.energy(gradient), energy(gradient)]))
        return subspace.project(gradient)

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if self.subspaces and self._due(trainer, step):
            pl_module.record(self._look(step))
        self._prepare(trainer, step)

    def _due(self, trainer: L.Trainer, step: int) -> bool:
        return step % self.every_n_steps == 0 or step >= trainer.max_steps

    def _prepare(self, trainer: L.Trainer, step: int) -> None:
        """What the next step needs: its subspace, and where it starts from if it is to be looked at."""
        if step == self.warmup_steps and not self.subspaces:
            self._choose(step)
        self._looking = bool(self.subspaces) and self._due(trainer, step + 1)
        if self._looking:
            self._before = {name: now.clone() for name, _, now in self.updates.mine(self._names, step)}

    def _choose(self, step: int) -> None:
        """Each rank decomposes its matrices; sums of what is zero on all other ranks tell everybody."""
        sides = {name: self.updates.shapes[name] for name in self._names}
        sizes = {name: min(self.rank, *shape) for name, shape in sides.items()}
        tables = {name: torch.zeros(sum(shape), sizes[name]) for name, shape in sides.items()}
        for name, start, now in self.updates.mine(self._names, step):
            found = decompose(now.float() - start.float(), sizes[name])
            if found.left is not None and found.right is not None and found.values[0] > 0:
                tables[name].copy_(torch.cat([found.left, found.right]))
        for name, table in tables.items():
            vectors = distributed.all_sum(table)
            if not vectors.any():
                text = f"`{name}` has not moved by step {step}, so that there is no subspace to train on"
                raise RunError(f"{text}; `{KEY}.warmup_steps` must be longer.")
            left, right = vectors.split(list(sides[name]))
            self.subspaces[name] = Subspace(right.contiguous(), left.contiguous() if self.side == "both" else None)
        self._place()

    def _place(self) -> None:
        self.subspaces = {name: found.to(self._device) for name, found in self.subspaces.items()}

    def _look(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        names = {name: row for row, name in enumerate(self._names)}
        rows = torch.zeros(len(names), 7, dtype=torch.float64)
        for name, start, now in self.updates.mine(self._names, step):
            rows[names[name]] = self._row(name, now.float() - start.float(), now - self._before[name])
        rows = distributed.all_sum(rows)
        energies = torch.stack(self._energies).sum(0).cpu() if self._energies else torch.zeros(2, dtype=torch.float64)
        inside, whole = (distributed.all_sum(energies) if self._hooked else energies).tolist()
        self._energies, self._before = [], {}
        sums, means = rows.sum(0).tolist(), rows.mean(0).tolist()
        found = {
            "subspace/microbatch_gradient_energy" if self._hooked else "subspace/gradient_energy": (inside, whole),
            "subspace/step_energy_outside": (sums[1] - sums[0], sums[1]),
            "subspace/update_energy": (sums[2], sums[3]),
        }
        shares = {key: part / of for key, (part, of) in found.items() if of}
        of_matrices = dict(zip(("top_energy", "stable_rank", "similarity"), means[4:], strict=True))
        seconds = {"time/subspace": time.perf_counter() - began}
        return shares | {f"subspace/{name}": value for name, value in of_matrices.items()} | seconds

    def _row(self, name: str, update: Tensor, step: Tensor) -> Tensor:
        # Masters may be offloaded to another device than gradients are on.
        subspace = self.subspaces[name].to(update.device)
        size = subspace.right.shape[1]
        found = decompose(update, size)
        spectrum = found.values.double().square()
        whole = energy(update)
        assert found.right is not None
        of_matrix = [float(spectrum[:size].sum() / whole), float(whole / spectrum[0])]
        energies = [float(value) for value in (subspace.energy(step), energy(step), subspace.energy(update), whole)]
        alike = similarity(found.right, subspace.right)
        return torch.tensor([*energies, *of_matrix, alike], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        found = {name: [found.right.cpu(), *_maybe(found.left)] for name, found in self.subspaces.items()}
        return {"choice": self.choice, "subspaces": found}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises UserError if the checkpoint's subspace was chosen by other rules."""
        for key, value in state_dict["choice"].items():
            if state_dict["subspaces"] and value != self.choice[key]:
                raise UserError(f"{KEY}.{key}", self.choice[key], f"{value!r}, by which the checkpoint's was chosen")
        self.subspaces = {name: Subspace(*found) for name, found in state_dict["subspaces"].items()}


def _maybe(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor.cpu()]
