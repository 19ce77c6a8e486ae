"""The cached teacher: what a model said about the completions of the data, read from files instead of asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.cache import HEAD
from distill.cache.compress import FIELDS, Kept, expand
from distill.cache.reader import Reader
from distill.errors import UserError
from distill.models import tokenizers
from distill.models.causal_lm import CausalLM
from distill.models.head import LogitHead
from distill.types import Batch, Row, Signal

log = logging.getLogger(__name__)


class CachedTeacher:
    """Answers from the cache at ``spec["cache"]``, sample by sample; nothing of a model is loaded but, beside hidden
    states, its output head.

    Raises UserError, named ``teacher.…``, for a cache that is not complete, was made with another tokenizer or chat
    template than ``student`` has, or of another model than ``spec`` names (where it names one).
    """

    judge = None
    max_positions = None

    def __init__(self, spec: dict[str, Any], student: CausalLM) -> None:
        self.reader = Reader(Path(spec["cache"]).expanduser(), "teacher.cache")
        self.made = made = self.reader.manifest.provenance
        for name in ("path", "revision"):
            there = made.model if name == "path" else made.revision
            if spec[name] not in (None, there):
                raise UserError(f"teacher.{name}", spec[name], f"{there!r}, whose answers are cached, or null")
        if tokenizers.fingerprint(student.tokenizer) != made.tokenizer:
            self._refuse("of the student's tokenizer (this one was made with another)")
        if tokenizers.template_hash(student.tokenizer) != made.template:
            self._refuse("of the student's chat template (this one was made with another)")
        self.head = _head(self.reader.folder / HEAD, made.vocab_size) if made.states else None

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        return []

    def check(self, data: str, sample_ids: Sequence[int]) -> None:
        """Refuses a cache of other training rows (by their fingerprint), or one that lacks some of them."""
        if data != self.made.data:
            self._refuse("of the same training data (this one's was another, or has changed since)")
        self.reader.check(sample_ids)

    def signal(self, batch: Batch) -> Signal:
        """The cached states ``[N, H]`` with the teacher's head; or the number of each target, ``[N]``, and a head that
        expands what is cached of it to log-probabilities times the cached temperature, which the loss divides by."""
        rows = _rows(batch)
        if self.head is not None:
            states = torch.cat([self.reader.states(row) for row in rows])
            return Signal(states.to(batch.input_ids.device).float(), self.head)
        parts = [self.reader.kept(row) for row in rows]
        kept = Kept(*(torch.cat([getattr(part, field) for part in parts]) for field in FIELDS))
        kept, targets = kept.to(batch.input_ids.device), batch.targets

        def head(positions: Tensor) -> Tensor:
            found = expand(kept.take(positions), targets[positions], self.made.vocab_size)
            return found if self.made.temperature == 1 else found * self.made.temperature

        return Signal(torch.arange(len(targets), device=targets.device), head)

    def place(self, device: torch.device | str) -> CachedTeacher:
        if self.head is not None:
            self.head.module.to(device)
        return self

    def _refuse(self, what: str) -> None:
        raise UserError("teacher.cache", str(self.reader.folder), f"a cache {what}")


def _rows(batch: Batch) -> list[Row]:
    ids, masks, lengths = batch.input_ids.cpu(), batch.target_mask.cpu(), batch.attention_mask.sum(-1).tolist()
    samples = zip(batch.sample_ids.tolist(), lengths, strict=True)
    return [Row(id_, ids[b, :length], masks[b, :length]) for b, (id_, length) in enumerate(samples)]


def _head(path: Path, vocab_size: int) -> LogitHead:
    try:
        stored = load_file(path)
        weight = stored["weight"].float()
        module = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in stored)
        module.load_state_dict({name: stored[name].float() for name in ("weight", "bias") if name in stored})
    except Exception as error:
        raise UserError("teacher.cache", str(path.parent), f"a cache with an intact {path.name}") from error
    module.requires_grad_(False)
    cap = float(stored["cap"])
    return LogitHead(module, vocab_size, float(stored["scale"]), None if cap == 0 else cap)
