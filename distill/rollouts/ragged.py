"""A causal LM that reads several tokens at a time behind a KV cache from which each row can take back its last ones.

``B`` rows, ``n`` tokens of a call, ``W`` columns of the cache, ``H`` hidden width.
"""

from __future__ import annotations

import inspect
import sys

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from distill.errors import UserError
from distill.models.causal_lm import CausalLM, unwrap

CROPPABLE = {DynamicLayer, DynamicSlidingWindowLayer}
"""Kinds of layers that keep a column per token and no state besides."""


class RaggedCache:
    """Rows of one batch inside a model. What they hold is right-aligned: rows with less start with masked columns."""

    def __init__(self, lm: CausalLM, rows: int, key: str) -> None:
        self.lm, self.key = lm, key
        self.reader = unwrap(lm.model) if lm.backbone is None else lm.backbone
        self.accepted = inspect.signature(self.reader.forward).parameters
        self.last_position = sys.maxsize if lm.max_positions is None else lm.max_positions - 1
        self.device = next(lm.model.parameters()).device
        self.mask = torch.zeros((rows, 0), dtype=torch.bool, device=self.device)
        # Layers with a window are as good: this cache keeps all their columns, and the mask hides what is outside.
        wanted = DynamicCache(config=unwrap(lm.model).config).layers
        if "past_key_values" not in self.accepted or not {type(layer) for layer in wanted} <= CROPPABLE:
            raise self._refused()
        self.cache = DynamicCache()

    def read(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """``[B, n]`` ids, of which ``valid`` count → states ``[B, n, H]`` that :attr:`CausalLM.head` takes."""
        self.mask = torch.cat([self.mask, valid], 1)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0, max=self.last_position)[:, -tokens.shape[1] :]
        optional = {"position_ids": positions} if "position_ids" in self.accepted else {}
        output = self.reader(
            input_ids=tokens,
            attention_mask=self.mask.long(),
            past_key_values=self.cache,
            use_cache=True,
            **optional,
        )
        states: Tensor = output.logits[..., : self.lm.vocab_size] if self.lm.backbone is None else output[0]
        return states

    def take_back(self, counts: Tensor) -> None:
        """Row ``b`` forgets its last ``counts[b]`` tokens, which must have been read."""
        fewest = int(counts.min())
        width = self.mask.shape[1] - fewest
        shift = (counts - fewest)[:, None]
        columns = torch.arange(width, device=self.device) - shift
        self.mask = self.mask.gather(1, columns.clamp(min=0)) & (columns >= 0)
        aligned = not bool(shift.any())
        # Columns in front that no row uses any more.
        unused = 0 if aligned else int((~self.mask.any(0)).long().cumprod(0).sum())
        self.mask = self.mask[:, unused:]
        index = columns.clamp(min=0)[:, None, unused:, None]
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                shape = (-1, held.shape[1], -1, held.shape[-1])
                kept = held[:, :, :width] if aligned else held.gather(2, index.expand(shape))
                setattr(layer, name, kept)

    def keep(self, lines: Tensor) -> None:
        """Drops all other rows."""
        self.mask = self.mask[lines]
        self.cache.batch_select_indices(lines)

    def _refused(self) -> UserError:
        kind = unwrap(self.lm.model).config.model_type
        allowed = (
            "a type of model whose cache has a column per token, with rollout=speculative (else rollout=on_policy)"
        )
        return UserError(self.key, kind, allowed)
