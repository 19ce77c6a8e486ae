"""Checks of who teaches: what each kind of teacher is made of, what it is told, and where it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter

from distill.config import schema
from distill.config.problem import Problem

TEMPLATE = "a template with at least one {field} of a sample, such as '{prompt} (Hint: {answer})'"


def model(name: str, config: schema.Model, words: bool = True) -> Iterator[Problem]:
    """``config`` is a model: weights from exactly one place, and a tokenizer where it reads ``words``."""
    keys = (f"{name}.path", f"{name}.config")
    if config.path is None and config.config is None:
        allowed = f"a folder, a .gguf file, package://NAME/SUBPATH or a hub id, unless {name}.config is given"
        yield Problem(keys, None, allowed)
    if config.path is not None and config.config is not None:
        yield Problem(keys, config.path, f"null when {name}.config is given: the weights come from one of the two")
    if words and config.config is not None and config.path is None and config.tokenizer is None:
        yield Problem((f"{name}.tokenizer", *keys), None, f"the path of a tokenizer when {name}.config is given")


def teacher(config: schema.Teacher, words: bool = True) -> Iterator[Problem]:
    if config.kind == "cached":
        yield from _cached(config)
    elif config.cache is not None:
        yield Problem(("teacher.cache", "teacher.kind"), config.cache, "null unless teacher.kind is 'cached'")
    if config.kind == "frozen" or (config.kind == "cotrained" and not config.members):
        yield from model("teacher", config, words)
    elif config.kind != "cached" and (config.path is not None or config.config is not None):
        allowed = "'frozen' when teacher.path or teacher.config is given (choose teacher=frozen)"
        yield Problem(("teacher.kind", "teacher.path", "teacher.config"), config.kind, allowed)
    if config.kind == "multi" or (config.kind == "cotrained" and config.members):
        yield from _members(config, words)
    elif config.members or config.by is not None:
        allowed = "'multi' when teacher.members or teacher.by is given (choose teacher=multi)"
        yield Problem(("teacher.kind", "teacher.members", "teacher.by"), config.kind, allowed)
    yield from _adapters(config)
    yield from _prompt(config)


def _adapters(config: schema.Teacher) -> Iterator[Problem]:
    learning = config.kind == "cotrained"
    parts = {"teacher": config.lora, **{f"teacher.members.{name}": one.lora for name, one in config.members.items()}}
    for name, lora in parts.items():
        if lora is not None and not learning:
            allowed = "null unless teacher.kind is 'cotrained': an adapter that does not learn changes nothing"
            yield Problem((f"{name}.lora", "teacher.kind"), lora.model_dump(), allowed)
    if learning and config.members and config.lora is not None:
        allowed = "null with teacher.members, each of which has its own (teacher.members.NAME.lora)"
        yield Problem(("teacher.lora", "teacher.members"), config.lora.model_dump(), allowed)


def _cached(config: schema.Teacher) -> Iterator[Problem]:
    if config.cache is None:
        yield Problem(("teacher.cache", "teacher.kind"), None, "the folder of a cache (made by `distill cache`)")
    if config.config is not None:
        allowed = "null with teacher.kind 'cached', which loads no model (make the cache with it)"
        yield Problem(("teacher.config", "teacher.kind"), config.config, allowed)


def _members(config: schema.Teacher, words: bool) -> Iterator[Problem]:
    if len(config.members) < 2:
        allowed = "two members or more, NAME: {path: …} each (choose teacher=frozen for a single one)"
        yield Problem(("teacher.members", "teacher.kind"), sorted(config.members), allowed)
    for name, member in config.members.items():
        yield from model(f"teacher.members.{name}", member, words)
        key = f"teacher.members.{name}.weight"
        if not member.weight > 0:
            yield Problem((key,), member.weight, "above 0 (leave out a member that is to teach nothing)")
        elif config.by is not None and member.weight != 1:
            allowed = "1 with teacher.by, where one member alone teaches a row"
            yield Problem((key, "teacher.by"), member.weight, allowed)


def _prompt(config: schema.Teacher) -> Iterator[Problem]:
    if config.prompt is None:
        if config.kind == "self":
            allowed = f"{TEMPLATE}, with teacher.kind 'self': nobody learns from reading what it reads itself"
            yield Problem(("teacher.prompt", "teacher.kind"), None, allowed)
        return
    if config.kind in ("none", "cached"):
        yield Problem(("teacher.prompt", "teacher.kind"), config.prompt, "null without a model to read it")
    try:
        fields = [
            (name, bool(spec or how)) for _, name, spec, how in Formatter().parse(config.prompt) if name is not None
        ]
    except ValueError:
        fields = []
    if not fields or not all(name.isidentifier() and not formatted for name, formatted in fields):
        yield Problem(("teacher.prompt",), config.prompt, TEMPLATE)


def placement(config: schema.TrainConfig) -> Iterator[Problem]:
    chosen, kind = config.teacher.placement, config.teacher.kind
    if chosen == "replicated":
        return
    if kind in ("none", "cached"):
        allowed = "'replicated' without a model that teaches"
        yield Problem(("teacher.placement", "teacher.kind"), chosen, allowed)
    elif kind != "frozen":
        where = "whose members are asked by one rank alone" if kind == "multi" else "which is kept as the student is"
        allowed = f"'replicated' with teacher.kind {kind!r}, {where}"
        yield Problem(("teacher.placement", "teacher.kind"), chosen, allowed)
    elif not config.trainer.strategy.startswith("zero"):
        allowed = "'replicated' unless DeepSpeed shards (choose trainer=zero1, zero2, zero3 or zero3_offload)"
        yield Problem(("teacher.placement", "trainer.strategy"), chosen, allowed)


def routing(config: schema.TrainConfig) -> Iterator[Problem]:
    """What the rest of the run has to offer to such a teacher."""
    part = config.teacher
    if part.by is not None and config.data.source != "text":
        allowed = f"null with data.source {config.data.source!r}, whose rows have no such field (choose data=text)"
        yield Problem(("teacher.by", "data.source"), part.by, allowed)
    if config.rollout.kind == "speculative" and part.prompt is not None:
        allowed = "null with rollout.kind 'speculative', whose teacher goes on with the student's own prompt"
        yield Problem(("teacher.prompt", "rollout.kind"), part.prompt, allowed)
