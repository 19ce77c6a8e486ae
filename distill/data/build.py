"""From the ``data`` section of a configuration to the training and the held-out dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.data import arithmetic, reasoning_gym, text
from distill.data.base import Dataset
from distill.data.briefing import Briefer, Needs
from distill.data.encode import Encoder
from distill.data.subset import subset
from distill.errors import UserError


def build(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    max_positions: int | None,
    completions: bool = False,
    needs: Needs | None = None,
) -> tuple[Dataset, Dataset]:
    """Training and held-out dataset, deterministic in the arguments; only ``reasoning_gym`` training uses ``seed``.

    ``config`` holds every key of ``config.schema.Data``; its ``limit`` or ``fraction`` is of the training set. Samples
    have at most ``data.max_length`` tokens, and no more than the model's context ``max_positions``. With
    ``completions`` a training row of text may not be a prompt alone; ``needs`` are the teacher's.
    Raises UserError for anything the user can mend, found now as far as possible and otherwise when the sample is
    first used.
    """
    if config["chat_template"] and tokenizer.chat_template is None:
        raise UserError("data.chat_template", True, "false for a tokenizer without a chat template")
    limit = min(config["max_length"], max_positions or config["max_length"])
    encoder = Encoder(tokenizer, limit, config["chat_template"], config["system_prompt"])
    briefer = Briefer(encoder, needs or Needs(), max_positions)
    train: Dataset
    held_out: Dataset
    if config["source"] == "arithmetic":
        train, held_out = arithmetic.build(config, briefer)
    elif config["source"] == "text":
        train, held_out = text.build(config, briefer, completions)
    else:
        train, held_out = reasoning_gym.build(config, briefer, seed)
    train = subset(train, config)
    for dataset in (train, held_out):
        dataset[0]
    return train, held_out
