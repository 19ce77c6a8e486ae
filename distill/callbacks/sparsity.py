"""Update sparsity of the live student against θ₀, every N optimizer steps and at the last one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L

from distill import distributed, sharding
from distill.analysis.live import Weights, live_weights
from distill.analysis.naming import place
from distill.analysis.source import Folder, match
from distill.analysis.sparsity import LABELS, PRECISIONS, TOLERANCES, Pair, compare, pack, share, unpack
from distill.analysis.tables import GROUP_COLUMNS, group_rows, parts, write_csv
from distill.callbacks.steps import StepCallback
from distill.errors import RunError, UserError

KEYS = (
    "sparsity/PRECISION/TOLERANCE",
    "sparsity/group/GROUP",
    "sparsity/layer/LAYER",
    "sparsity/module/LAYER.MODULE",
    "update/relative_norm",
    "update/relative_norm_fp32",
    "update/relative_norm/group/GROUP",
    "update/relative_norm/layer/LAYER",
    "update/energy/group/GROUP",
    "update/energy/layer/LAYER",
    "time/sparsity",
)
"""Keys recorded. What names neither precision nor tolerance is bf16 at 1e-5; ``update/energy`` are shares of ΣΔ²,
``update/relative_norm`` is ‖Δ‖/‖θ₀‖, ``time/sparsity`` the seconds the measurement took."""


class UpdateSparsity(StepCallback):
    """Compares the student with the safetensors folder ``source`` and records :data:`KEYS`.

    Weights are the ones the model holds (for LoRA: merged), so ``fp32`` means the fp32 master only if the student is
    kept in fp32, or trained by ZeRO, whose masters are measured. Each rank measures its share of the tensors, or of
    each tensor where they are in shards; the summed counts equal those of one process exactly.
    Nothing is kept between measurements: a resumed run records what the uninterrupted one does. With ``tables``, every
    measurement also writes ``step_NNNNNN.csv`` there: both precisions and all tolerances for the model, every group,
    every layer and every module of a layer (columns: ``analysis.tables.GROUP_COLUMNS``).
    """

    label = "sparsity"

    def __init__(self, source: Path, every_n_steps: int, tables: Path | None = None) -> None:
        self.source, self.every_n_steps, self.tables = source, every_n_steps, tables
        self._pairs: tuple[tuple[str, str], ...] = ()
        self._weights: Weights = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Matches names, so that a student that does not fit its source is refused before the first step."""
        self._weights, tied = live_weights(pl_module.lm.model)
        shapes = {name: tuple(weight.read().shape) for name, weight in self._weights.items()}
        with Folder(self.source, "callbacks.sparsity") as folder:
            found = match(folder.shapes, shapes, folder.tied, tied)
        if not found.complete:
            raise UserError(
                "callbacks.sparsity", str(found), f"null, or find every tensor of the student in {self.source}"
            )
        self._pairs = found.pairs

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        # Not where a signal stops the run: the run that resumes it measures at the planned steps only.
        if step % self.every_n_steps and step < trainer.max_steps:
            return
        began = time.perf_counter()
        pairs = self._measure()
        broken = [name for name, pair in pairs.items() if not all(counts.finite for counts in pair.values())]
        if broken:
            raise RunError(f"`{broken[0]}` holds NaN or infinity at step {step}; the last checkpoint is intact.")
        if self.tables is not None and trainer.is_global_zero:
            self.tables.mkdir(parents=True, exist_ok=True)
            write_csv(self.tables / f"step_{step:06d}.csv", GROUP_COLUMNS, group_rows(pairs))
        pl_module.record(metrics(pairs) | {"time/sparsity": time.perf_counter() - began})

    def _measure(self) -> dict[str, Pair]:
        names = [name for name, _ in self._pairs]
        mine = set(share(names, distributed.rank(), distributed.world_size()))
        measured = dict[str, Pair]()
        with Folder(self.source, "callbacks.sparsity") as folder:
            for name, before in self._pairs:
                weight = self._weights[name]
                piece = sharding.piece(weight.parameters[0]) if weight.plain and weight.parameters else None
                if piece is not None:
                    start = folder.tensor(before).flatten()[piece.start :][: len(piece.values)]
                    measured[name] = compare(start, piece.values)
                    continue
                # Merging an adapter takes the whole layer, whose weights may be in shards.
                with sharding.gathered(weight.parameters):
                    if name in mine:
                        measured[name] = compare(folder.tensor(before), weight.read())
        # Sums of a table in which each coordinate was measured by one rank.
        counts, energies = (distributed.all_sum(part) for part in pack(names, measured))
        return unpack(names, counts, energies)

    @staticmethod
    def keys(names: Iterable[str]) -> list[str]:
        """The keys recorded for a student with parameters of these names."""
        found = [f"sparsity/{precision}/{label}" for precision in PRECISIONS for label in LABELS]
        found += ["update/relative_norm", "update/relative_norm_fp32", "time/sparsity"]
        places = [place(name) for name in names]
        scopes = {f"group/{where.group}" for where in places}
        scopes |= {f"layer/{where.layer}" for where in places if where.layer is not None}
        for prefix in ("sparsity", "update/relative_norm", "update/energy"):
            found += [f"{prefix}/{scope}" for scope in sorted(scopes)]
        modules = {f"{where.layer}.{where.module}" for where in places if where.layer is not None}
        return found + [f"sparsity/module/{module}" for module in sorted(modules)]


def metrics(pairs: Mapping[str, Pair]) -> dict[str, float]:
    """Counts of every tensor → the numbers of :data:`KEYS` (all but the time)."""
    (_, _, whole), *rest = parts(pairs)
    found = {
        f"sparsity/{precision}/{label}": whole[precision].sparsity(tolerance)
        for precision in PRECISIONS
        for label, tolerance in zip(LABELS, TOLERANCES, strict=True)
    }
    found["update/relative_norm"] = whole["bf16"].relative_norm
    found["update/relative_norm_fp32"] = whole["fp32"].relative_norm
    for scope, name, pair in rest:
        found[f"sparsity/{scope}/{name}"] = pair["bf16"].sparsity()
        if scope != "module":
            found[f"update/relative_norm/{scope}/{name}"] = pair["bf16"].relative_norm
            found[f"update/energy/{scope}/{name}"] = pair["bf16"].energy_share(whole["bf16"])
    return found
