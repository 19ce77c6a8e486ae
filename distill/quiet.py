"""Silences what libraries print about matters that are ours."""

from __future__ import annotations

import logging
import warnings

import transformers
from huggingface_hub.utils import logging as hub_logging


def quiet_libraries() -> None:
    """No hardware banner, tips, advice about loaders or progress bars inside the run's own display."""
    # It has a handler of its own: every line would be there twice.
    hub_logging.disable_propagation()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    # What DeepSpeed calls in torch under its former name.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.*")
    # What transformers tells peft about names of its next version.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers.*")
    # Its table of missing weights, beside our error; what else it warns about is checked in `models`.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
