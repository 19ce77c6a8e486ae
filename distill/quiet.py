"""Silences what libraries print about matters that are ours."""

from __future__ import annotations

import logging
import warnings

import transformers


def quiet_libraries() -> None:
    """No hardware banner, tips, advice about loaders or progress bars inside the run's own display."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    transformers.utils.logging.disable_progress_bar()
