"""Where student and teacher agree, as pictures over held-out images, every N optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from distill import distributed
from distill.callbacks.steps import StepCallback, is_last
from distill.figures import canvas
from distill.figures.feature_maps import feature_maps

FOLDER = "feature_maps"


class FeatureMaps(StepCallback):
    """Draws ``feature_maps/step-N.png`` before the first step, every N steps, and after the last.

    ``look`` takes the device and gives maps ``[n, h, w]`` of the images ``pixels`` ``[n, C, X, Y]``, by their names.
    Every rank looks, rank 0 draws.
    """

    label = "feature_maps"

    def __init__(
        self, look: Callable[[torch.device], Mapping[str, Tensor]], pixels: Tensor, run_dir: Path, every_n_steps: int
    ) -> None:
        self.look, self.pixels, self.folder, self.every_n_steps = look, pixels, run_dir / FOLDER, every_n_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self._draw(pl_module, 0)

    def on_step(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        if step % self.every_n_steps == 0 or is_last(trainer, step):
            self._draw(pl_module, step)

    def _draw(self, pl_module: Any, step: int) -> None:
        found = self.look(pl_module.device)
        if distributed.rank() == 0:
            self.folder.mkdir(exist_ok=True)
            maps = {name: values.cpu().numpy() for name, values in found.items()}
            canvas.save(
                feature_maps(self.pixels.numpy(), maps, title=f"step {step}"), self.folder / f"step-{step:08d}.png"
            )
