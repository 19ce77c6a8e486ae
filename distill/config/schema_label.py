"""The schema of ``distill label``, and its check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from distill.config import checks_data, checks_teacher
from distill.config.problem import Problem
from distill.config.rundir import unusable
from distill.config.schema import Data, Teacher
from distill.config.strict import Filled, Positive, Strict

SYNTHETIC = ("rows", "attempts", "examples", "example", "instruction")
"""Keys of ``label`` that mean nothing where prompts are given."""
FREE = ("out", "label.rows", "label.attempts")
"""Keys that may change when the command goes on: what one draw gives does not depend on them."""


class Sampling(Strict):
    """How the teacher writes, as in a rollout. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: Positive = 256
    batch_size: Positive = Field(256, description="rows decoded at once; so many are lost at most by a kill")


class Label(Strict):
    prompts: Literal["given", "synthetic"] = Field("given", description="those of the data, or new ones like them")
    samples_per_prompt: Positive = Field(1, description="answers to each given prompt")
    verify: bool = Field(True, description="drop what the data's verifier finds wrong, where there is one")
    rows: Positive | None = Field(None, description="prompts synthetic: rows to make")
    attempts: Positive = Field(4, description="prompts synthetic: draws per row at most")
    examples: Positive = Field(4, description="prompts synthetic: rows of the data that the teacher is shown")
    example: str = Field(
        "Prompt: {prompt}\nResponse: {completion}\n\n", description="prompts synthetic: how a row is written down"
    )
    instruction: str = Field(
        "Write a prompt and a response to it, unlike those before but of the same kind.",
        description="prompts synthetic, conversations: the question to which examples are the answers",
    )


class LabelConfig(Strict):
    """``distill label``: a file of rows that the teacher has written."""

    seed: int = Field(0, ge=0, lt=2**31)
    data: Data = Data()
    teacher: Teacher = Teacher()
    sampling: Sampling = Sampling()
    label: Label = Label()
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    out: Filled = Field(description="a folder: new, or where this command goes on")


def check(config: LabelConfig) -> Iterator[Problem]:
    """The teacher is a model, the keys suit the kind of prompts, and ``out`` can be written."""
    yield from checks_data.data(config.data)
    yield from live_teacher(config.teacher)
    yield from folder(config.out)
    part = config.label
    if part.prompts == "given":
        yield from _unread(part)
        if config.sampling.temperature == 0 and part.samples_per_prompt > 1:
            allowed = "above 0 when label.samples_per_prompt is above 1: greedy answers are all equal"
            yield Problem(("sampling.temperature", "label.samples_per_prompt"), 0.0, allowed)
        return
    if part.rows is None:
        yield Problem(("label.rows", "label.prompts"), None, "given with label.prompts 'synthetic'")
    if part.samples_per_prompt != 1:
        allowed = "1 with label.prompts 'synthetic', where every draw has a prompt of its own"
        yield Problem(("label.samples_per_prompt", "label.prompts"), part.samples_per_prompt, allowed)
    if not re.fullmatch(r"[^{}]*\{prompt\}[^{}]+\{completion\}[^{}]+", part.example):
        allowed = "text with {prompt} and {completion} in it, once each in this order, something after each of them"
        yield Problem(("label.example",), part.example, allowed)


def live_teacher(config: Teacher) -> Iterator[Problem]:
    """Of a command that asks the teacher itself, whole in every process."""
    yield from checks_teacher.teacher(config)
    if config.kind != "frozen":
        yield Problem(("teacher.kind",), config.kind, "'frozen': a model that can be asked (choose teacher=frozen)")
    if config.prompt is not None:
        yield Problem(
            ("teacher.prompt",), config.prompt, "null: the teacher reads what a student of its text will read"
        )
    if config.placement != "replicated":
        yield Problem(("teacher.placement",), config.placement, "'replicated': each process asks a teacher of its own")


def folder(out: str) -> Iterator[Problem]:
    if reason := f"{out} is a file" if Path(out).is_file() else unusable(Path(out)):
        yield Problem(("out",), out, f"a folder to write into ({reason})")


def _unread(part: Label) -> Iterator[Problem]:
    for name in SYNTHETIC:
        value, default = getattr(part, name), Label.model_fields[name].default
        if value != default:
            more = " (data.limit says how many prompts)" if name == "rows" else ""
            yield Problem((f"label.{name}", "label.prompts"), value, f"{default!r} with label.prompts 'given'{more}")
