"""A measurement of the live student as pictures, histograms and a table, for the loggers that show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from distill.analysis.distribution import Histogram
from distill.analysis.sparsity import by_module, group_by
from distill.callbacks.sparsity_measure import Measurement
from distill.callbacks.sparsity_record import COLUMNS, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = (
    "sparsity_media/layers_and_modules",
    "sparsity_media/minus_null",
    "sparsity_media/log10_update/PRECISION",
    "sparsity_media/table",
)
"""Logged to W&B at each measurement, and all but the table to TensorBoard; ``metrics.jsonl`` holds numbers alone. Maps
are bf16 at 1e-5; the histogram is of log10 abs(Δ), coordinates that are exactly where they were left out."""


def shows(loggers: Sequence[Logger]) -> bool:
    """Whether one of them shows more than numbers."""
    return any(isinstance(logger, WandbLogger | TensorBoardLogger) for logger in loggers)


def show(loggers: Sequence[Logger], measured: Measurement, step: int) -> None:
    """Logs KEYS where somebody shows them. On rank 0."""
    if not shows(loggers):
        return
    from distill.figures import canvas

    pictures = {key: canvas.pixels(figure) for key, figure in _maps(measured).items()}
    histograms = (measured.spread or {}).items()
    spread = {f"sparsity_media/log10_update/{precision}": found for precision, found in histograms}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, pictures, spread, measured, step)
        elif isinstance(logger, TensorBoardLogger):
            _to_tensorboard(logger, pictures, spread, step)


def _to_wandb(
    logger: WandbLogger, pictures: dict[str, Any], spread: dict[str, Histogram], measured: Measurement, step: int
) -> None:
    import wandb

    for key, picture in pictures.items():
        logger.log_image(key, [picture], step=step)
    histograms: dict[str, Any] = {
        key: wandb.Histogram(np_histogram=(np.array(found.counts), _exponents(found))) for key, found in spread.items()
    }
    logger.log_metrics(histograms, step)
    # An empty cell among numbers would make W&B refuse the column.
    table = [[None if row.get(column, "") == "" else row[column] for column in COLUMNS] for row in rows(measured)]
    logger.log_table("sparsity_media/table", columns=list(COLUMNS), data=table, step=step)


def _to_tensorboard(
    logger: TensorBoardLogger, pictures: dict[str, Any], spread: dict[str, Histogram], step: int
) -> None:
    for key, picture in pictures.items():
        logger.experiment.add_image(key, picture, step, dataformats="HWC")
    for key, found in spread.items():
        edges, counts = _exponents(found), np.array(found.counts)
        middle = (edges[:-1] + edges[1:]) / 2
        moments = {"sum": float(counts @ middle), "sum_squares": float(counts @ middle**2)}
        logger.experiment.add_histogram_raw(
            key,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=int(counts.sum()),
            **moments,
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )


def _exponents(found: Histogram) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([math.log10(edge) for edge in found.edges])


def _maps(measured: Measurement) -> dict[str, Figure]:
    """Layers × modules; none for a model without decoder blocks."""
    from distill.figures.heatmap import heat_map

    observed, null = (group_by(pairs, by_module) for pairs in (measured.since_start, measured.null))
    if not observed:
        return {}
    layers, modules = sorted({layer for layer, _ in observed}), _ordered(module for _, module in observed)
    share = {place: pair["bf16"].sparsity() for place, pair in observed.items()}
    excess = {place: share[place] - pair["bf16"].sparsity() for place, pair in null.items()}

    def cells(values: dict[tuple[int, str], float]) -> list[list[float]]:
        return [[values.get((layer, module), math.nan) for module in modules] for layer in layers]

    names, label = [str(layer) for layer in layers], "share with |Δ| ≤ 1e-5 in bf16"
    return {
        "sparsity_media/layers_and_modules": heat_map(
            names, modules, cells(share), title="Update sparsity since the start", label=label
        ),
        "sparsity_media/minus_null": heat_map(
            names,
            modules,
            cells(excess),
            title="Update sparsity minus its rounding null",
            label=f"{label}, minus the null's",
            diverging=True,
        ),
    }


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
