"""Validates a whole resolved configuration and reports every mistake in it at once.

Types and limits come from the schema, impossible combinations from :mod:`distill.config.checks`, import paths from
:mod:`distill.config.targets`. Values are redacted before they are shown.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distill.config import suggest, targets
from distill.config.problem import Problem
from distill.config.redact import redact, redact_text
from distill.errors import UserError

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(UserError):
    """Several mistakes, one line each."""

    def __init__(self, problems: Sequence[UserError]) -> None:
        self.problems = tuple(problems)
        self.key, self.value, self.allowed = problems[0].key, problems[0].value, problems[0].allowed
        lines = dict.fromkeys(redact_text(str(problem)) for problem in problems)
        ValueError.__init__(self, "\n".join(lines))


def validate(
    raw: dict[str, Any],
    schema: type[Config],
    checks: Callable[[Config], Iterator[Problem]],
) -> dict[str, Any]:
    """The configuration as plain values with every default filled in.

    Raises:
        ConfigError: naming every unknown key, wrong value, refused import path and impossible combination.
    """
    config, problems = collect(raw, schema, checks)
    if problems:
        raise ConfigError(problems)
    assert config is not None
    return config


def collect(
    raw: dict[str, Any],
    schema: type[Config],
    checks: Callable[[Config], Iterator[Problem]],
) -> tuple[dict[str, Any] | None, list[UserError]]:
    """As :func:`validate`, returning the mistakes instead of raising them."""
    problems = list(targets.refused(raw, targets.allowed()))
    faults: list[ErrorDetails] = []
    try:
        model: Config | None = schema.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        model = _without(raw, faults, schema)
    wrong = _merged(error for fault in faults for error in _describe(fault, raw, schema))
    problems += wrong
    if model is not None:
        keys = {error.key for error in wrong}
        # A combination with a value that is already reported would be a guess.
        found = (problem for problem in checks(model) if keys.isdisjoint(problem.keys))
        problems += [UserError(problem.keys[0], redact(problem.value), problem.allowed) for problem in found]
    done = model.model_dump(mode="json", by_alias=True) if model is not None and not problems else None
    return done, problems


def _without(raw: dict[str, Any], faults: list[ErrorDetails], schema: type[Config]) -> Config | None:
    """The configuration with every faulty value at its default, or None where a faulty key has none."""
    rest = copy.deepcopy(raw)
    for fault in faults:
        *parents, last = _path(fault, raw)
        node: Any = rest
        for part in parents:
            node = node.get(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node.pop(last, None)
    try:
        return schema.model_validate(rest)
    except ValidationError:
        return None


def _path(fault: ErrorDetails, raw: dict[str, Any]) -> list[str]:
    """The keys from the top to the faulty one; Pydantic adds the branch of a union and the index in a list."""
    path: list[str] = []
    node: Any = raw
    for place, part in enumerate(fault["loc"], start=1):
        last = place == len(fault["loc"])
        if path and not (isinstance(node, dict) and (part in node or (last and fault["type"] == "missing"))):
            if isinstance(node, dict) and not last:
                continue
            break
        path.append(str(part))
        node = node.get(part) if isinstance(node, dict) else None
    return path


def _describe(fault: ErrorDetails, raw: dict[str, Any], schema: type[BaseModel]) -> list[UserError]:
    key = ".".join(_path(fault, raw))
    if fault["type"] == "extra_forbidden":
        leaves = _leaves(key, fault["input"])
        return [UserError(leaf, redact(value, leaf), suggest.known_key(leaf, schema)) for leaf, value in leaves]
    if fault["type"] == "missing":
        return [UserError(key, None, f"given ({suggest.description(key, schema)})")]
    return [UserError(key, redact(fault["input"], key), _allowed(fault, key, schema))]


def _merged(errors: Iterable[UserError]) -> list[UserError]:
    """One error per key: a value that fits no branch of a union is reported once, with all that is allowed."""
    found: dict[str, UserError] = {}
    for error in errors:
        allowed = f"{found[error.key].allowed} or {error.allowed}" if error.key in found else error.allowed
        found[error.key] = UserError(error.key, error.value, allowed)
    return list(found.values())


def _leaves(key: str, value: Any) -> list[tuple[str, Any]]:
    """The settings below an unknown key: what the user typed, rather than the section it opened."""
    if isinstance(value, dict) and value:
        return [leaf for name, item in value.items() for leaf in _leaves(f"{key}.{name}", item)]
    return [(key, value)]


def _allowed(fault: ErrorDetails, key: str, schema: type[BaseModel]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    text = fault["msg"].removeprefix("Value error, ").removeprefix("should be ")
    text = text.removeprefix("Input should be ").removeprefix("Input should ").replace("a valid ", "a ")
    if kind == "literal_error":
        text = f"one of {context['expected']}" + suggest.close(fault["input"], suggest.literals(key, schema))
    elif kind.startswith("int_"):
        text = "a whole number"
    elif kind.startswith("float_"):
        text = "a number"
    elif kind.startswith("bool_"):
        text = "true or false"
    elif kind == "string_type":
        text = """text (a number needs quotes: '"5"')""" if isinstance(fault["input"], int | float) else "text"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        text = "a group of keys (KEY.NAME=VALUE)"
    elif kind == "list_type":
        text = "a list (KEY=[VALUE,…])"
    elif kind == "too_short":
        text = f"a list of at least {context['min_length']}"
    elif kind == "string_too_short":
        text = "text that is not empty"
    elif kind == "string_pattern_mismatch":
        text = f"text of the form {context['pattern']}"
    return text + (" or null" if suggest.optional(key, schema) else "")
