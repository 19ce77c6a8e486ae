"""From a configuration to a :class:`~distill.models.causal_lm.CausalLM`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import UserError
from distill.models import gguf, lora, prune, tokenizers, weights
from distill.models.causal_lm import CausalLM, wrap
from distill.models.locate import ALLOWED, locate

log = logging.getLogger(__name__)

LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, SafetensorError)


def build(spec: dict[str, Any], *, seed: int, key: str) -> CausalLM:
    """Builds the model that ``spec`` (the fields of the schema's ``Student`` or ``Teacher``) describes, on the CPU.

    Weights come from ``spec["path"]``, or are drawn from ``seed`` for ``spec["config"]``; the global random state is
    left as it was. Generation settings of a checkpoint are never used for sampling.

    Raises:
        UserError: named under ``key`` (``student`` or ``teacher``), for whatever cannot be found, read or used.
    """
    path, config = spec.get("path"), spec.get("config")
    if (path is None) == (config is None):
        raise UserError(f"{key}.path", path, f"set if and only if `{key}.config` is not ({ALLOWED})")
    with seeded(seed):
        if path is not None:
            model, tokenizer = _load(spec, path, key)
        else:
            model, tokenizer = _random(spec, dict(config or {}), key)
        if spec.get("layers") is not None:
            model = prune.keep_layers(model, spec["layers"], key=key)
        adapted = lora.apply(model, spec["lora"], key=key) if spec.get("lora") else model
    if spec.get("gradient_checkpointing"):
        checkpoint_activations(model, key)
    return wrap(adapted, tokenizer, key=key)


def readable(spec: dict[str, Any], *, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that :func:`build` would find; of its weights, the files are looked at and not read.

    Raises:
        UserError: named under ``key``, when something is not there.
    """
    location = None if spec["path"] is None else _folder(spec["path"], spec, f"{key}.path")
    if isinstance(location, Path):
        weights.check_files(location, allow_pickle=spec["allow_pickle"], key=key)
    return _tokenizer(spec, location, key)


def _load(spec: dict[str, Any], path: str, key: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    location = _folder(path, spec, f"{key}.path")
    tokenizer = _tokenizer(spec, location, key)
    if isinstance(location, Path):
        weights.check_files(location, allow_pickle=bool(spec.get("allow_pickle")), key=key)
    try:
        model, report = pretrained(AutoModelForCausalLM, spec, location)
    except LOADING_ERRORS as error:
        raise _explained(error, spec, key) from error
    weights.check_complete(report, path=path, key=key)
    if unused := report["unexpected_keys"]:
        log.warning("%s: %d tensors are not part of the model, first %r", path, len(unused), min(unused))
    weights.check_finite(model, path=path, key=key)
    return model, tokenizer


def pretrained(
    auto: Any, spec: dict[str, Any], location: Path | str, **more: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of transformers' class ``auto``, and what its files lack or have beyond it. Raises LOADING_ERRORS."""
    model, report = auto.from_pretrained(
        location,
        revision=spec.get("revision") or "main",
        use_safetensors=None if spec.get("allow_pickle") else True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options(spec),
        **more,
    )
    return model, report


def _random(spec: dict[str, Any], config: dict[str, Any], key: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not spec.get("tokenizer"):
        raise UserError(f"{key}.tokenizer", None, f"set beside `{key}.config` ({ALLOWED})")
    if "model_type" not in config:
        raise UserError(f"{key}.config", config, "a transformers configuration with a `model_type`")
    tokenizer = _tokenizer(spec, None, key)
    settings = _token_settings(tokenizer) | config
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), **options(spec))
        # Sizes that do not fit together show in the first forward pass only.
        model(input_ids=torch.zeros((1, 2), dtype=torch.long))
    except (*LOADING_ERRORS, StrictDataclassError, TypeError, RuntimeError) as error:
        raise _explained(error, spec, key) from error
    return model, tokenizer


def _token_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer's size and special ids, instead of those of the architecture's first checkpoint."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if ids["pad_token_id"] == ids["eos_token_id"]:
        # nn.Embedding gives its padding row no gradient, and end-of-sequence has to learn.
        ids["pad_token_id"] = None
    return {"vocab_size": tokenizers.vocab_size(tokenizer), **ids}


def options(spec: dict[str, Any]) -> dict[str, Any]:
    attention = spec.get("attn_implementation")
    return {
        "dtype": getattr(torch, spec.get("dtype", "float32")),
        # None means sdpa too, but with eager attention where a model has none.
        "attn_implementation": None if attention == "sdpa" else attention,
        "trust_remote_code": bool(spec.get("trust_remote_code")),
    }


def _tokenizer(spec: dict[str, Any], location: Path | str | None, key: str) -> PreTrainedTokenizerBase:
    options = {"trust_remote_code": bool(spec.get("trust_remote_code"))}
    if spec.get("tokenizer"):
        return tokenizers.load(_folder(spec["tokenizer"], spec, f"{key}.tokenizer"), key=f"{key}.tokenizer", **options)
    assert location is not None
    return tokenizers.load(location, key=f"{key}.path", revision=spec.get("revision") or "main", **options)


def _folder(path: str, spec: dict[str, Any], key: str) -> Path | str:
    """Folder or hub id; a GGUF file is converted to a folder."""
    found = locate(path, key=key)
    if isinstance(found, Path) and found.is_file():
        return gguf.convert(found, spec.get("dtype", "float32"), key=key)
    return found


def _explained(error: Exception, spec: dict[str, Any], key: str) -> UserError:
    """The key at fault, for an error of transformers."""
    path, attention, reason = spec.get("path"), spec.get("attn_implementation"), tokenizers.one_line(error)
    if "trust_remote_code" in str(error):
        return UserError(f"{key}.trust_remote_code", False, f"true to run the Python code that {path!r} brings along")
    if attention == "flash_attention_2" and "flash" in str(error).lower():
        return UserError(f"{key}.attn_implementation", attention, f"one that works here ({reason})")
    if path is None:
        return UserError(f"{key}.config", spec["config"], f"a transformers configuration of a causal LM ({reason})")
    return UserError(f"{key}.path", path, f"{ALLOWED}, of a causal LM ({reason})")


def checkpoint_activations(model: PreTrainedModel, key: str) -> None:
    if not model.supports_gradient_checkpointing:
        raise UserError(f"{key}.gradient_checkpointing", True, f"false for a model of type {model.config.model_type!r}")
    # The second name is that of older transformers.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU from ``seed``; afterwards the global generator goes on where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
