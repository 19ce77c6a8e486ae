"""Models without weights: built from a configuration on fake tensors, which have shapes and nothing else.

Of a checkpoint only its configuration and tokenizer are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from distill.errors import UserError
from distill.models import lora, prune, tokenizers
from distill.models.causal_lm import CausalLM, unwrap
from distill.models.head import LogitHead, identity
from distill.models.locate import locate

READ = (OSError, ValueError, KeyError, ImportError, StrictDataclassError)


def tokenizer(spec: dict[str, Any], key: str) -> PreTrainedTokenizerBase:
    """The tokenizer a model is used with, from this machine only.

    Raises:
        UserError: it is not here.
    """
    name = "tokenizer" if spec.get("tokenizer") else "path"
    location, options = _location(spec[name], f"{key}.{name}")
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, local_files_only=True, **options)
    except READ as error:
        raise _absent(spec[name], f"{key}.{name}", "tokenizer.json", error) from error
    return found


def config(spec: dict[str, Any], words: PreTrainedTokenizerBase, key: str) -> Any:
    """The transformers configuration of a model: given, read from its ``config.json`` or from a GGUF header.

    Raises:
        UserError: it is not here, or describes no model.
    """
    try:
        if spec.get("config") is not None:
            return AutoConfig.for_model(**{"vocab_size": tokenizers.vocab_size(words)} | spec["config"])
        location, options = _location(spec["path"], f"{key}.path")
        trust = bool(spec.get("trust_remote_code"))
        return AutoConfig.from_pretrained(location, local_files_only=True, trust_remote_code=trust, **options)
    except UserError:
        raise
    except (*READ, TypeError) as error:
        if spec.get("config") is not None:
            reason = tokenizers.one_line(error)
            raise UserError(f"{key}.config", spec["config"], f"a transformers configuration ({reason})") from error
        raise _absent(spec["path"], f"{key}.path", "config.json", error) from error


def build(spec: dict[str, Any], words: PreTrainedTokenizerBase, key: str, mode: FakeTensorMode) -> CausalLM:
    """A model of the shapes that ``distill.models.build`` would load, in the dtype it would have.

    Raises:
        UserError: the configuration is of no causal LM, or has sizes that do not fit together.
    """
    settings, attention = config(spec, words, key), spec["attn_implementation"]
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                settings,
                dtype=getattr(torch, spec["dtype"]),
                # None is sdpa where a model has it. Kernels that are not installed have sdpa's memory.
                attn_implementation="eager" if attention == "eager" else None,
                trust_remote_code=bool(spec.get("trust_remote_code")),
            )
    except (*READ, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{key}.path", spec.get("path"), f"a causal LM ({tokenizers.one_line(error)})") from error
    with torch.device("meta"):
        if spec.get("layers") is not None:
            model = prune.keep_layers(model, spec["layers"], key=key)
        whole = lora.apply(model, spec["lora"], key=key) if spec.get("lora") else model
    with mode:
        _to_cpu(whole)
    if spec.get("gradient_checkpointing"):
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return _wrapped(whole, words, key)


def _to_cpu(model: nn.Module) -> None:
    """Puts fake CPU tensors in place of meta tensors: kernels and their saved tensors differ between devices.

    Built on the meta device first, as fake tensors cannot change their dtype in place, which adapters do.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def replaced(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype)
            new = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
            # The former one is held on to, or its id might be another's.
            made[id(tensor)] = tensor, new
        return made[id(tensor)][1]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            found: dict[str, Any] = {
                name: None if tensor is None else replaced(tensor) for name, tensor in tensors.items()
            }
            tensors.update(found)


def _wrapped(model: Any, words: PreTrainedTokenizerBase, key: str) -> CausalLM:
    """As ``models.causal_lm.wrap``, which measures the head; shapes alone cannot tell, so the configuration does."""
    base = unwrap(model)
    output = base.get_output_embeddings()
    backbone: Any = getattr(base, "model", None) if base.base_model is base else base.base_model
    embedding: Any = base.get_input_embeddings()
    size, rows = tokenizers.vocab_size(words), len(embedding.weight)
    if rows < size:
        raise UserError(f"{key}.tokenizer", words.name_or_path, f"no larger than the model's {rows} rows, not {size}")
    pad = words.pad_token_id or 0
    if backbone is None or output is None:
        return CausalLM(model, words, size, rows, frozenset(), pad, None, identity)
    cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return CausalLM(model, words, size, rows, frozenset(), pad, backbone, LogitHead(output, size, 1.0, cap))


def _location(path: str, key: str) -> tuple[Path | str, dict[str, Any]]:
    """Folder or hub id, and what transformers is to be told besides: the file to read, for GGUF."""
    found = locate(path, key=key)
    if isinstance(found, Path) and found.is_file():
        return found.parent, {"gguf_file": found.name}
    return found, {}


def _absent(path: str, key: str, file: str, error: Exception) -> UserError:
    reason = tokenizers.one_line(error)
    return UserError(key, path, f"a folder with `{file}`, or a hub id already downloaded ({reason})")
