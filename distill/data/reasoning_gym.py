"""Procedural reasoning tasks with verifiable answers, from the ``reasoning_gym`` package (Apache-2.0)."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import numpy as np

from distill.data.base import check_index, digest
from distill.data.briefing import Briefer
from distill.data.encode import Origin
from distill.errors import UserError
from distill.types import Sample

HELD_OUT_SHARE = 4
"""One in this many questions, by the hash of its text, is never trained on."""
ATTEMPTS = 64
HELD_OUT_SEED = 2**31
HASH_SEEDED = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Tasks that iterate over sets of strings, so that their output changes with Python's hash seed."""


class ReasoningGym:
    """One side of a task's split; entries are generated on access.

    Entry ``i`` is the first of a fixed sequence of generated entries whose question is on this side: the sides share
    no question, even where a task knows only a few. Training questions depend on ``seed``, held-out ones do not.
    """

    has_verifier = True

    def __init__(
        self, briefer: Briefer, task: str, options: Mapping[str, Any], *, seed: int, size: int, held_out: bool
    ) -> None:
        self.briefer, self.task, self.options = briefer, task, dict(options)
        self.size, self.held_out = size, held_out
        self.name = f"reasoning_gym/{task}"
        # Generators count up from their seed: neighbouring run seeds must not give the same entries, shifted.
        self.first_seed = HELD_OUT_SEED if held_out else _hash(f"seed {seed}") % HELD_OUT_SEED
        self._generator = lru_cache(maxsize=4)(self._create)
        self._entry = lru_cache(maxsize=size if held_out else 1)(self._find)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        check_index(index, self.size)
        entry = self._entry(index)
        prompt, origin = self._prompt(entry), Origin("data.task", f"{self.task}, entry {index}")
        sample = Sample(index, *self.briefer.encoder.text(prompt, entry["answer"], origin), answer=entry)
        return self.briefer(sample, {"prompt": prompt, "answer": entry["answer"]}, origin)

    def score(self, sample: Sample, completion: str) -> float:
        """1.0 if the task's own verifier gives full marks to the completion or to its last ``<answer>…</answer>``."""
        from reasoning_gym.utils import extract_answer

        candidates = (completion.strip(), extract_answer(completion))
        return float(any(self._correct(candidate, sample.answer) for candidate in candidates if candidate))

    def row(self, index: int) -> dict[str, Any]:
        check_index(index, self.size)
        entry = self._entry(index)
        found = self.briefer.encoder.row(self._prompt(entry), entry["answer"])
        return found if entry["answer"] is None else found | {"answer": entry["answer"]}

    def _prompt(self, entry: Mapping[str, Any]) -> str:
        question: str = entry["question"]
        return question if self.briefer.encoder.chat_template else question + "\n"

    def describe(self) -> dict[str, Any]:
        return {
            "source": "reasoning_gym",
            "task": self.task,
            "options": self.options,
            "rows": self.size,
            "first_seed": self.first_seed,
            "split": f"questions {'in' if self.held_out else 'not in'} the held-out quarter by hash (fixed)",
        }

    def fingerprint(self) -> str:
        return digest(self.describe() | {"reasoning_gym": version("reasoning_gym")})

    def _create(self, attempt: int) -> Any:
        from reasoning_gym import create_dataset

        seed = self.first_seed + attempt * self.size
        try:
            return create_dataset(self.task, size=self.size, seed=seed, **self.options)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError("data.options", self.options, f"options that {self.task!r} accepts ({error})") from error

    def _find(self, index: int) -> dict[str, Any]:
        for attempt in range(ATTEMPTS):
            with _own_random_state(self.first_seed + attempt * self.size + index):
                entry: dict[str, Any] = self._generator(attempt)[index]
            if (_hash(entry["question"]) % HELD_OUT_SHARE == 0) == self.held_out:
                return entry
        raise UserError(
            "data.task", self.task, f"a task with more different questions (none new in {ATTEMPTS} attempts)"
        )

    def _correct(self, answer: str, entry: dict[str, Any]) -> bool:
        try:
            return bool(self._generator(0).score_answer(answer, entry) >= 1)
        except Exception:
            # Some verifiers raise, with anything, on text that is not in their format: a wrong answer.
            return False


def build(config: Mapping[str, Any], briefer: Briefer, seed: int) -> tuple[ReasoningGym, ReasoningGym]:
    """Training and held-out sides of ``data.task``.

    Raises UserError if the package is missing, the task or an option unknown, or the task not reproducible.
    """
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(
            "data.source", "reasoning_gym", "a source whose package is installed (pip install 'distill[reasoning]')"
        ) from error
    task, options = config["task"], config["options"]
    if task not in DATASETS:
        near = get_close_matches(str(task), DATASETS, cutoff=0.4) or sorted(DATASETS)[:5]
        raise UserError("data.task", task, f"one of reasoning_gym's {len(DATASETS)} tasks, such as {', '.join(near)}")
    if task in HASH_SEEDED and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise UserError("data.task", task, "a reproducible task unless the environment sets PYTHONHASHSEED=0")
    known = sorted({field.name for field in fields(DATASETS[task][1])} - {"seed", "size"})
    for option in options:
        if option not in known:
            raise UserError("data.options", option, f"one of {', '.join(known)} for {task!r}")
    train = ReasoningGym(briefer, task, options, seed=seed, size=config["size"], held_out=False)
    held_out = ReasoningGym(briefer, task, options, seed=seed, size=config["eval_size"], held_out=True)
    return train, held_out


def _hash(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """A few tasks draw from the global generators: they get a seed of their own and leave no trace."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
