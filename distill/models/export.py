"""Writes a model so that ``from_pretrained`` of its transformers class loads it."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from distill import distributed, sharding
from distill.errors import RunError
from distill.models.base import Network
from distill.models.lora import is_adapted, merged


def save(lm: Network, folder: Path | str) -> None:
    """Writes weights (safetensors, their dtype kept, LoRA merged), configuration and tokenizer (of images: the
    settings of their processor) to ``folder``.

    The folder appears under its name only when it is complete; one that is there already is replaced. A collective
    where weights are in shards; rank 0 alone writes.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind then.
        RunError: the same, as safetensors tells it.
    """
    folder = Path(folder)
    if is_adapted(lm.model):
        with sharding.whole(lm.model):
            if distributed.rank() == 0:
                _save(lm, folder, None)
        return
    state = sharding.state_on_rank_0(lm.model) if sharding.is_sharded(lm.model.parameters()) else None
    if distributed.rank() == 0:
        _save(lm, folder, state)


def _save(lm: Network, folder: Path, state: dict[str, Tensor] | None) -> None:
    """``state``: the weights by name, if the model itself does not hold them."""
    partial, former = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "former"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        # The names of the live model, not those of the architecture's first release.
        merged(lm.model).save_pretrained(partial, state_dict=state, save_original_format=False)
        lm.save_reader(partial)
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)
            folder.rename(former)
        partial.rename(folder)
    except SafetensorError as error:
        raise RunError(f"cannot save the student in {folder}: {error}; checkpoints are intact.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)
