"""From the ``data`` section of a configuration to the training and the held-out dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.data import arithmetic, reasoning_gym, text
from distill.data.base import Dataset
from distill.data.briefing import Briefer, Needs
from distill.data.encode import Encoder
from distill.data.mixture import Mixture
from distill.data.subset import subset
from distill.errors import UserError

Pair = tuple[Dataset, Dataset]


def build(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    max_positions: int | None,
    completions: bool = False,
    needs: Needs | None = None,
    judging: Mapping[str, Any] | None = None,
) -> Pair:
    """Training and held-out dataset, deterministic in the arguments; only ``reasoning_gym`` training uses ``seed``.

    ``config`` holds every key of ``config.schema.Data``; its ``limit`` or ``fraction`` is of the training set. Held-out
    examples are those of ``judging``, the section ``eval_data``, unless it is None. Samples have at most
    ``data.max_length`` tokens, and no more than the model's context ``max_positions``. With ``completions`` a training
    row of text may not be a prompt alone; ``needs`` are the teacher's.
    Raises UserError for anything the user can mend, found now as far as possible and otherwise when the sample is
    first used.
    """
    common = (tokenizer, seed, max_positions, needs or Needs())
    train, held_out = _build(config, completions, *common)
    if judging is not None:
        try:
            _, held_out = _build(judging, False, *common)
        except UserError as error:
            raise _renamed(error, "eval_data") from error
    for dataset in (train, held_out):
        dataset[0]
    return train, held_out


def judged(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of a run's configuration that its held-out examples come from."""
    found: Mapping[str, Any] = config["eval_data"] or config["data"]
    return found


def _build(
    config: Mapping[str, Any],
    completions: bool,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    max_positions: int | None,
    needs: Needs,
) -> Pair:
    if config["source"] == "mixture":
        return _mixed(config, completions, tokenizer, seed, max_positions, needs)
    if config["chat_template"] and tokenizer.chat_template is None:
        raise UserError("data.chat_template", True, "false for a tokenizer without a chat template")
    limit = min(config["max_length"], max_positions or config["max_length"])
    encoder = Encoder(tokenizer, limit, config["chat_template"], config["system_prompt"])
    briefer = Briefer(encoder, needs, max_positions)
    train: Dataset
    held_out: Dataset
    if config["source"] == "arithmetic":
        train, held_out = arithmetic.build(config, briefer)
    elif config["source"] == "text":
        train, held_out = text.build(config, briefer, completions)
    elif config["source"] == "reasoning_gym":
        train, held_out = reasoning_gym.build(config, briefer, seed)
    else:
        raise UserError("data.source", config["source"], "a source of text")
    return subset(train, config), held_out


def _mixed(config: Mapping[str, Any], *arguments: Any) -> Pair:
    """Held-out examples are those of every part, as many of each as its weight has of ``eval_size``."""
    names, weights = tuple(config["parts"]), tuple(part["weight"] for part in config["parts"].values())
    common = math.gcd(*weights)
    pairs = []
    for name, part in config["parts"].items():
        share = math.ceil(config["eval_size"] * part["weight"] / sum(weights))
        try:
            pairs.append(_build({**part, "eval_size": share}, *arguments))
        except UserError as error:
            raise _renamed(error, f"data.parts.{name}") from error
    made = (tuple(side) for side in zip(*pairs, strict=True))
    train, held_out = (Mixture(names, side, tuple(weight // common for weight in weights)) for side in made)
    return train, held_out


def _renamed(error: UserError, section: str) -> UserError:
    """The error of a section that is like ``data``, under that section's name."""
    key = error.key
    return UserError(section + key.removeprefix("data") if key.startswith("data.") else key, error.value, error.allowed)
