"""Spectrum and place of the update among the source's principal directions, every N optimizer steps and at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import lightning as L
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill import distributed, watchdog
from distill.analysis.matrix import METRICS, PRECISIONS, Sources, Values, measure
from distill.analysis.naming import GROUPS, place
from distill.analysis.sample import headline, sampled
from distill.analysis.source import natural
from distill.analysis.subspace import similarity
from distill.analysis.tables import write_csv
from distill.callbacks.steps import StepCallback
from distill.callbacks.updates import Updates

KEYS = (
    "geometry/PRECISION/MEASURE.median",
    "geometry/PRECISION/MEASURE.mean",
    "geometry/PRECISION/null_MEASURE.median",
    "geometry/PRECISION/null_MEASURE.mean",
    "geometry/group/GROUP/MEASURE.median",
    "geometry/matrices",
    "geometry/similarity_to_previous",
    "geometry/similarity_to_final/STEP",
    "time/geometry",
)
"""Keys recorded, over the ``geometry/matrices`` that count for the headline; those by group are in bf16. The
similarities are means of that of the top K right singular vectors of Δ, ``similarity_to_final`` only at the last step,
for the step of each earlier measurement."""
HEADLINE = (
    "rank_1e-5",
    "stable_rank",
    "entropy_rank",
    "spectral_energy_16",
    "projection_joint_0.1",
    "projection_left_0.1",
    "projection_right_0.1",
    "rotation_left_0.1",
    "rotation_right_0.1",
    "spectral_drift",
)
"""The MEASUREs among the columns of the tables that become metrics."""
COLUMNS = ("name", "group", "layer", "module", "rows", "columns", "headline", "precision")
TABLE = (*COLUMNS, *(f"{kind}{metric}" for metric in METRICS for kind in ("", "null_")))
LOCKING = ("step", "name", "group", "layer", "module", "similarity_to_previous", "similarity_to_final", "chance")
KEY = "callbacks.geometry"

Rows = dict[str, dict[str, Values]]
"""Measures by matrix and precision."""


class Geometry(StepCallback):
    """Compares matrices of the student with the safetensors folder ``source`` and records :data:`KEYS`.

    ``matrices`` is how many are drawn by ``seed``, as evenly over the kinds of modules as that allows, or "all". Each
    is one rank's to decompose (where weights are in shards one matrix per rank is gathered at a time), and every rank
    gets all numbers, so that they do not depend on how many there are.
    Each measurement leaves ``step_NNNNNN.csv`` (columns :data:`TABLE`: both precisions, the rounding null beside every
    measure) and ``step_NNNNNN.safetensors`` (the top K right singular vectors of Δ in fp32, by matrix) in ``folder``;
    the last one also ``locking.csv`` (columns :data:`LOCKING`). What is in the folder from after the step a run resumes
    at is removed, and a run that goes on in another folder adopts what is from before (:func:`adopt`), so that a
    resumed run leaves what the uninterrupted one does.
    """

    label = "geometry"

    def __init__(
        self, source: Path, folder: Path, *, every_n_steps: int, matrices: int | Literal["all"], seed: int
    ) -> None:
        self.source, self.folder, self.every_n_steps = source, folder, every_n_steps
        self.matrices, self.seed = matrices, seed
        self.cache = Sources()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        self.updates = Updates(pl_module.lm.model, self.source, KEY)
        shapes = self.updates.shapes
        names = list(shapes) if self.matrices == "all" else sampled(shapes, self.matrices, self.seed)
        self.names = sorted(names, key=natural)
        self.headline = headline({name: shapes[name] for name in self.names})

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            for path in (path for step, path in _measured(self.folder) if step > trainer.global_step):
                path.unlink()
                path.with_suffix(".csv").unlink(missing_ok=True)
            (self.folder / "locking.csv").unlink(missing_ok=True)

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        # Not where a signal stops the run: the run that resumes it measures at the planned steps only.
        if step % self.every_n_steps and step < trainer.max_steps:
            return
        began = time.perf_counter()
        rows, directions = self._measure(step)
        found = metrics(rows, self.headline) | self._since_last(step, directions)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step_{step:06d}.safetensors"
            write_csv(path.with_suffix(".csv"), TABLE, self._table(rows))
            save_file(directions, path)
        if step >= trainer.max_steps:
            found |= self._lock(trainer, step)
        pl_module.record(found | {"time/geometry": time.perf_counter() - began})

    def _since_last(self, step: int, directions: dict[str, Tensor]) -> dict[str, float]:
        earlier = [path for before, path in _measured(self.folder) if before < step]
        previous = load_file(earlier[-1]) if earlier else {}
        names = [name for name in self.headline if name in previous and name in directions]
        found = [similarity(previous[name], directions[name]) for name in names]
        return {"geometry/similarity_to_previous": fmean(found)} if found else {}

    def _measure(self, step: int) -> tuple[Rows, dict[str, Tensor]]:
        mine: list[tuple[str, dict[str, Values], Tensor | None]] = []
        for name, start, now in self.updates.mine(self.names, step):
            mine.append((name, *measure(name, start, now, self.cache, self.seed)))
            watchdog.progress()
        found: dict[str, tuple[dict[str, Values], Tensor | None]] = {}
        for part in distributed.gather_objects(mine):
            assert isinstance(part, list)
            found |= {name: (values, directions) for name, values, directions in part}
        directions = {name: found[name][1] for name in self.names}
        rows = {name: found[name][0] for name in self.names}
        return rows, {name: kept.contiguous() for name, kept in directions.items() if kept is not None}

    def _table(self, rows: Rows) -> Iterator[dict[str, Any]]:
        for name, by_precision in rows.items():
            shape, counts = self.updates.shapes[name], name in self.headline
            sizes = {"rows": shape[0], "columns": shape[1], "headline": int(counts)}
            for precision, values in by_precision.items():
                yield _place(name) | sizes | {"precision": precision} | values

    def _lock(self, trainer: L.Trainer, step: int) -> dict[str, float]:
        """What locking.csv says of earlier measurements, which rank 0 writes; files are seen by every rank."""
        distributed.barrier()
        rows = list(locking(dict(_measured(self.folder))))
        if trainer.is_global_zero:
            write_csv(self.folder / "locking.csv", LOCKING, rows)
        found: dict[int, list[float]] = {}
        for row in rows:
            if row["name"] in self.headline and row["step"] < step and row["similarity_to_final"] != "":
                found.setdefault(row["step"], []).append(row["similarity_to_final"])
        return {f"geometry/similarity_to_final/{earlier}": fmean(values) for earlier, values in found.items()}


def metrics(rows: Rows, names: Sequence[str]) -> dict[str, float]:
    """Measures of every matrix → those of :data:`KEYS` that are about one measurement, over the matrices ``names``."""
    found = {"geometry/matrices": float(len(names))}
    for precision in PRECISIONS:
        for metric in (f"{kind}{metric}" for metric in HEADLINE for kind in ("", "null_")):
            values = _values(rows, names, precision, metric)
            if values:
                found[f"geometry/{precision}/{metric}.median"] = median(values)
                found[f"geometry/{precision}/{metric}.mean"] = fmean(values)
    for group in GROUPS:
        members = [name for name in names if place(name).group == group]
        for metric in HEADLINE:
            if values := _values(rows, members, "bf16", metric):
                found[f"geometry/group/{group}/{metric}.median"] = median(values)
    return found


def _values(rows: Rows, names: Sequence[str], precision: str, metric: str) -> list[float]:
    found = (rows[name][precision].get(metric) for name in names)
    return [value for value in found if value is not None]


def locking(files: Mapping[int, Path]) -> Iterator[dict[str, Any]]:
    """Rows of :data:`LOCKING` from the saved directions of every measurement, by step; the last one is the final."""
    directions = {step: load_file(path) for step, path in sorted(files.items())}
    steps = list(directions)
    for before, step in zip([None, *steps], steps, strict=False):
        for name, vectors in directions[step].items():
            previous = None if before is None else directions[before].get(name)
            final = directions[steps[-1]].get(name)
            yield _place(name) | {
                "step": step,
                "similarity_to_previous": "" if previous is None else similarity(previous, vectors),
                "similarity_to_final": "" if final is None else similarity(vectors, final),
                "chance": vectors.shape[1] / vectors.shape[0],
            }


def _place(name: str) -> dict[str, Any]:
    where = place(name)
    layer = "" if where.layer is None else where.layer
    return {"name": name, "group": where.group, "layer": layer, "module": where.module}


def adopt(folder: Path, other: Path, last_step: int) -> None:
    """Copies what a run resumed at ``last_step`` compares with, if it goes on in another folder than it began in."""
    for step, path in _measured(other):
        if step <= last_step:
            folder.mkdir(parents=True, exist_ok=True)
            for kept in (path, path.with_suffix(".csv")):
                if kept.exists():
                    shutil.copyfile(kept, folder / kept.name)


def _measured(folder: Path) -> list[tuple[int, Path]]:
    """(step, file of directions) of every measurement in a folder, in order."""
    return [(int(path.stem.removeprefix("step_")), path) for path in sorted(folder.glob("step_*.safetensors"))]
