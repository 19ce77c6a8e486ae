"""A causal LM as the rest of the package sees it: hidden states, a head over the shared vocabulary, and token ids."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import UserError
from distill.models import tokenizers
from distill.models.head import LogitHead, identity, measure
from distill.types import Head, MicroBatch, Signal

log = logging.getLogger(__name__)


@dataclass(eq=False)
class CausalLM:
    """A model with its tokenizer. Not an ``nn.Module``: whoever trains it registers :attr:`model`.

    Attributes:
        model: the transformers model, or the ``PeftModel`` around it.
        vocab_size: rows of the output embedding that the tokenizer knows; ``padded_vocab_size`` counts all of them.
        eos_ids: every id that ends a sequence, of the tokenizer and of the model's configurations.
        pad_id: the id padding is filled with; it may be one of ``eos_ids``, so masks come from lengths.
        backbone: the part of ``model`` below the head; None when ``hidden`` has to return logits.
        head: ``[..., H] → [..., V]``, unpadded; the identity when ``backbone`` is None.
        name: what it is in messages: the section of the configuration that it is from.
    """

    model: PreTrainedModel | Any
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    padded_vocab_size: int
    eos_ids: frozenset[int]
    pad_id: int
    backbone: nn.Module | None
    head: Head
    name: str = "model"

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the positions allow, None if there is no limit."""
        limit: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """What the head is made of; under ZeRO-3 it has to be gathered where :attr:`head` is called."""
        return list(self.head.module.parameters()) if isinstance(self.head, LogitHead) else []

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, T], [B, T] → [B, T, H]``: the states below the head, the same under left and right padding."""
        if self.backbone is None:
            return padded_logits(self, input_ids, attention_mask)[..., : self.vocab_size]
        states: Tensor = self.backbone(**_inputs(self.backbone, input_ids, attention_mask)).last_hidden_state
        return states

    def signal(self, batch: MicroBatch) -> Signal:
        """The states that predict the batch's targets, ``[N, H]``, and the head."""
        return Signal(batch.select(self.hidden(*batch.inputs)), self.head)

    def save_reader(self, folder: Path) -> None:
        """Writes the tokenizer."""
        self.tokenizer.save_pretrained(folder)


def wrap(model: PreTrainedModel | Any, tokenizer: PreTrainedTokenizerBase, *, key: str) -> CausalLM:
    """Joins model and tokenizer, and finds backbone and head by a short forward pass.

    Raises:
        UserError: named under ``key``, when the tokenizer knows more tokens than the model has rows, or no token ends
            a sequence.
    """
    base = unwrap(model)
    vocab_size = tokenizers.vocab_size(tokenizer)
    rows = [len(layer.weight) for layer in _embeddings(base) if layer is not None]
    if min(rows) < vocab_size:
        name = tokenizer.name_or_path or f"of {vocab_size} tokens"
        raise UserError(
            f"{key}.tokenizer", name, f"no larger than the model's {min(rows)} rows (it has {vocab_size} tokens)"
        )
    eos_ids = tokenizers.eos_ids(tokenizer, base)
    if not eos_ids:
        raise UserError(f"{key}.tokenizer", tokenizer.name_or_path, "a tokenizer with an end-of-sequence token")
    pad_id = min(eos_ids) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    backbone, head = _split(base, vocab_size, key)
    return CausalLM(model, tokenizer, vocab_size, rows[-1], eos_ids, pad_id, backbone, head, key.partition(".")[0])


def padded_logits(lm: CausalLM, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The model's own logits ``[B, T, padded_vocab_size]``, padding rows included."""
    base = unwrap(lm.model)
    logits: Tensor = base(**_inputs(base, input_ids, attention_mask)).logits
    return logits


def unwrap(model: Any) -> PreTrainedModel:
    """The transformers model inside a ``PeftModel`` (its layers carry the adapters), or the model itself."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the former mode of every module comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        # Autocast keeps the casts made here, which have no graph: a later forward inside it would train nothing.
        torch.clear_autocast_cache()


def _split(model: PreTrainedModel, vocab_size: int, key: str) -> tuple[nn.Module | None, Head]:
    """Backbone and head, if head(backbone(x)) is what the model computes; otherwise (None, identity)."""
    output = _embeddings(model)[1]
    # Some classes name a prefix that they do not have, and are their own base model then.
    backbone: nn.Module | None = getattr(model, "model", None) if model.base_model is model else model.base_model
    input_ids = torch.arange(1, 17, device=model.device).remainder(vocab_size)[None]
    mask = torch.ones_like(input_ids)
    own: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
    with evaluating(model):
        if backbone is not None and output is not None:
            measured = measure(model, output, own, vocab_size)
            states = getattr(backbone(**_inputs(backbone, input_ids, mask)), "last_hidden_state", None)
            if measured is not None and states is not None and _close(states, measured[1]):
                return backbone, measured[0]
        if not _close(model(**_inputs(model, input_ids, mask)).logits, model(**own).logits):
            raise UserError(f"{key}.path", model.config.model_type, "a type of model whose positions count from 0")
    log.warning("%s: no separate head found, whole logits are kept in memory", model.config.model_type)
    return None, identity


def _close(states: Tensor, expected: Tensor) -> bool:
    if states.shape != expected.shape:
        return False
    return bool((states - expected).abs().max() <= 1e-3 * expected.abs().max())


def _embeddings(model: Any) -> tuple[Any, Any]:
    """Input and output embedding; the second is None where the model does not tell."""
    return model.get_input_embeddings(), model.get_output_embeddings()


def _inputs(module: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """Forward arguments without a cache; positions count attended tokens, for the models that take positions."""
    mask = attention_mask.long()
    inputs = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
    if "position_ids" in inspect.signature(module.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return inputs
