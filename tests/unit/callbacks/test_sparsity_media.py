"""What W&B and TensorBoard show of a measurement."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from distill.analysis.distribution import histogram
from distill.analysis.sparsity import compare
from distill.callbacks.sparsity_measure import Measurement
from distill.callbacks.sparsity_media import KEYS, show
from distill.callbacks.sparsity_record import COLUMNS


def measurement(names: tuple[str, ...]) -> Measurement:
    octaves = torch.zeros(2, 256, dtype=torch.int64)
    start = 0.02 * torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    after = start + 2e-5 * torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    pairs = {name: compare(start, after, octaves) for name in names}
    spread = {precision: histogram(row) for precision, row in zip(("bf16", "fp32"), octaves, strict=True)}
    return Measurement(pairs, None, pairs, spread)


LAYERS = measurement(("layers.0.mlp.up_proj.weight", "layers.1.self_attn.q_proj.weight"))
SPREAD = LAYERS.spread or {}


class Recorder(WandbLogger):
    """W&B's logger without W&B."""

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step == 7
        self.logged |= metrics

    def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
        self.log_metrics({key: images}, step)

    def log_table(self, key: str, columns: Any = None, data: Any = None, step: int | None = None, **_: Any) -> None:
        self.log_metrics({key: (columns, data)}, step)


def test_wandb_gets_maps_histograms_and_the_table() -> None:
    logger = Recorder()
    show([logger], LAYERS, 7)
    documented = {key.replace("PRECISION", row) for key in KEYS for row in ("bf16", "fp32")}
    assert set(logger.logged) == documented
    (picture,) = logger.logged["sparsity_media/layers_and_modules"]
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    found = logger.logged["sparsity_media/log10_update/fp32"]
    assert sum(found.histogram) + SPREAD["fp32"].zeros == 2 * 32 * 16
    assert found.bins[0] == pytest.approx(-12.04, abs=0.01)
    columns, data = logger.logged["sparsity_media/table"]
    assert tuple(columns) == COLUMNS
    assert len(data) == 2 * (1 + 2 + 2 + 2)
    assert all(row[columns.index("since_last_sparsity_1e-5")] is None for row in data)


def test_a_model_without_layers_has_no_maps() -> None:
    logger = Recorder()
    show([logger], measurement(("norm.weight",)), 7)
    assert not any(key.endswith(("modules", "null")) for key in logger.logged)
    assert "sparsity_media/table" in logger.logged


def test_tensorboard_gets_maps_and_histograms(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    show([logger], LAYERS, 7)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["images"]) == {"sparsity_media/layers_and_modules", "sparsity_media/minus_null"}
    (event,) = events.Histograms("sparsity_media/log10_update/fp32")
    assert event.step == 7
    assert event.histogram_value.num == 2 * 32 * 16 - SPREAD["fp32"].zeros


def test_others_get_nothing(tmp_path: Path) -> None:
    show([CSVLogger(tmp_path)], LAYERS, 7)
    assert list(tmp_path.iterdir()) == []


def test_the_histogram_counts_every_coordinate_that_moved() -> None:
    octaves = torch.zeros(2, 256, dtype=torch.int64)
    after = torch.tensor([0.0, 2.0**-20, -(2.0**-20) * 1.5, 1.0, 3.0, -100.0, 1e-30])
    compare(torch.zeros(7), after, octaves)
    found = histogram(octaves[1])
    assert found.zeros == 1
    counts = dict(zip(found.edges, found.counts, strict=False))
    assert counts == {edge: 0 for edge in counts} | {2.0**-40: 1, 2.0**-20: 2, 1.0: 3}
