"""Update sparsity of the live student against θ₀ and its last measurement, every N optimizer steps and at the last."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L

from distill import distributed
from distill.analysis.live import Weights, live_weights
from distill.analysis.source import Folder, match
from distill.analysis.tables import write_csv
from distill.callbacks import snapshots
from distill.callbacks.snapshots import Snapshot, Writer
from distill.callbacks.sparsity_measure import KEY, Measure, Measurement
from distill.callbacks.sparsity_media import show, shows
from distill.callbacks.sparsity_record import COLUMNS, metrics, rows
from distill.callbacks.steps import StepCallback
from distill.errors import UserError

KEYS = (
    "sparsity/PRECISION/TOLERANCE",
    "sparsity/group/GROUP",
    "sparsity/layer/LAYER",
    "sparsity/module/LAYER.MODULE",
    "sparsity_null/PRECISION/TOLERANCE",
    "sparsity_null/group/GROUP",
    "sparsity_null/layer/LAYER",
    "sparsity_since_last/PRECISION/TOLERANCE",
    "sparsity_since_last/group/GROUP",
    "sparsity_since_last/layer/LAYER",
    "update/relative_norm",
    "update/relative_norm_fp32",
    "update/relative_norm/group/GROUP",
    "update/relative_norm/layer/LAYER",
    "update/energy/group/GROUP",
    "update/energy/layer/LAYER",
    "update_since_last/relative_norm",
    "update_since_last/relative_norm_fp32",
    "time/sparsity",
)
"""Keys recorded. What names neither precision nor tolerance is bf16 at 1e-5; ``update/energy`` are shares of ΣΔ²,
``update/relative_norm`` is ‖Δ‖/‖θ₀‖, ``time/sparsity`` the seconds the measurement took. ``sparsity_null`` is what a
structureless update of the same norm per tensor would show (``analysis.expectation``); ``since_last`` compares with the
weights of the last measurement, at the first one with θ₀."""

COTRAINED = (*(f"online/NAME/{key}" for key in KEYS if not key.startswith("time/")), "time/sparsity/NAME")
"""Keys recorded of each network that is trained together with the student."""
ORIGIN = "origin/"
"""What the names of metrics begin with that compare with ``origin`` in place of θ₀; there is no since_last of them."""

TABLE, WEIGHTS = "step_{:06d}.csv", "weights"
"""In the callback's folder: a table per measurement, and the snapshots of the weights."""

log = logging.getLogger(__name__)


class UpdateSparsity(StepCallback):
    """Compares the student with the safetensors folder ``source`` and records :data:`KEYS`.

    Weights are the ones the model holds (for LoRA: merged), so ``fp32`` means the fp32 master only if the student is
    kept in fp32, or trained by ZeRO, whose masters are measured.

    ``network`` names one that is trained together with the student, and measured in its place: its keys begin with
    ``online/NETWORK/``.

    ``origin`` is a folder of weights from before θ₀, such as those an earlier stage began with, compared with, too.
    With a ``folder``, every measurement also writes ``step_NNNNNN.csv`` there: both precisions and all tolerances for
    the model, every group, every layer and every module of a layer (columns: ``sparsity_record.COLUMNS``). With
    ``since_last``, the weights stay there until the next measurement, and as long as one of the checkpoints, whose
    steps ``saved`` tells, may be resumed from, so that a resumed run records what the uninterrupted one does.
    """

    label = "sparsity"

    def __init__(
        self,
        source: Path,
        every_n_steps: int,
        folder: Path | None = None,
        *,
        origin: Path | None = None,
        since_last: bool = False,
        saved: Callable[[], Iterable[int]] = tuple,
        network: str | None = None,
    ) -> None:
        self.source, self.every_n_steps, self.folder, self.saved = source, every_n_steps, folder, saved
        self.network = network
        self._weights = folder / WEIGHTS if folder is not None and since_last else None
        self.origin = origin
        self._measured: int | None = None
        self._resumed = True

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Matches names, so that a student that does not fit its source is refused before the first step."""
        lm = pl_module.lm if self.network is None else pl_module.mutual.networks[self.network]
        weights, tied = live_weights(lm.model)
        shapes = {name: tuple(weight.read().shape) for name, weight in weights.items()}
        self._measure = _measure(self.source, weights, shapes, tied, KEY)
        if self.origin is not None:
            self._beside = _measure(self.origin, weights, shapes, tied, f"{KEY}.origin")
        self._numel = {name: math.prod(shapes[name]) for name in self._measure.names}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self._measured = 0

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        # Not where a signal stops the run: the run that resumes it measures at the planned steps only.
        if step % self.every_n_steps and step < trainer.max_steps:
            return
        began = time.perf_counter()
        measured = self._measure_and_keep(step, shows(trainer.loggers))
        if trainer.is_global_zero:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_csv(self.folder / TABLE.format(step), COLUMNS, rows(measured))
            if self.network is None:
                show(trainer.loggers, measured, step)
        found = metrics(measured)
        if self.origin is not None:
            beside = self._beside.run(step, None, None, from_start=False, spread=False)
            found |= {f"{ORIGIN}{key}": value for key, value in metrics(beside).items()}
        prefix, seconds = ("", "time/sparsity")
        if self.network is not None:
            prefix, seconds = f"online/{self.network}/", f"time/sparsity/{self.network}"
        named = {f"{prefix}{key}": value for key, value in found.items()}
        pl_module.record(named | {seconds: time.perf_counter() - began})

    def _measure_and_keep(self, step: int, spread: bool) -> Measurement:
        if self._weights is None:
            return self._measure.run(step, None, None, from_start=False, spread=spread)
        writer, from_start = Writer(self._weights, step), self._measured == 0
        measured = self._measure.run(step, self._last(), writer, from_start=from_start, spread=spread)
        writer.publish()
        self._measured, self._resumed = step, False
        if distributed.rank() == 0:
            snapshots.prune(self._weights, self.saved())
        return measured

    def _last(self) -> Snapshot | None:
        """The weights of the last measurement, if every rank finds them. A collective.

        A run that goes on from a checkpoint of an earlier version, or without its snapshot, measures what it can.
        """
        if self._weights is None or self._measured == 0:
            return None
        found, problem = None, "the checkpoint does not say when the last measurement was"
        if self._measured is not None:
            try:
                found = Snapshot(self._weights, self._measured)
                if self._resumed:
                    found.check(self._numel)
                problem = ""
            except ValueError as error:
                problem = str(error)
        problems = [told for told in distributed.gather_objects(problem) if told]
        if problems:
            log.warning("this measurement does not tell what has changed since the last one: %s", problems[0])
        return None if problems else found

    @property
    def state_key(self) -> str:
        name = type(self).__qualname__
        return name if self.network is None else f"{name}/{self.network}"

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured = state_dict["measured"]


def _measure(
    source: Path, weights: Weights, shapes: Mapping[str, tuple[int, ...]], tied: list[str], key: str
) -> Measure:
    with Folder(source, key) as folder:
        found = match(folder.shapes, dict(shapes), folder.tied, tied)
    if not found.complete:
        raise UserError(key, str(found), f"null, or find every tensor of the student in {source}")
    return Measure(source, weights, found.pairs)


def forget_after(folder: Path, last_step: int) -> None:
    """Removes what a run has measured after ``last_step``, which the run that resumes it measures again."""
    for path in folder.glob("step_*.csv"):
        if int(path.stem.removeprefix("step_")) > last_step:
            path.unlink()
    snapshots.forget_after(folder / WEIGHTS, last_step)


def adopt(folder: Path, other: Path, last_step: int) -> None:
    """Takes over what a run needs that goes on in another folder than the one it was begun in."""
    snapshots.adopt(folder / WEIGHTS, other / WEIGHTS, last_step)
