"""What a schema knows of a dotted key: whether it exists, what it may hold, and what a mistyped one may have meant."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of the schema, sections included, with its field."""
    for name, field in schema.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        for section in _models(field.annotation):
            yield from keys(section, f"{path}.")


def known_key(key: str, schema: type[BaseModel]) -> str:
    """What to say of an unknown key: the closest known one, and the keys of its section."""
    known = [name for name, _ in keys(schema)]
    section, _, leaf = key.rpartition(".")
    by_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    # A section that is always there is meant rather than one that may be null.
    by_leaf.sort(key=lambda name: optional(name.rpartition(".")[0], schema))
    found = difflib.get_close_matches(key, known, 1, 0.7) or by_leaf
    if not found:
        leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
        found = [leaves[name] for name in difflib.get_close_matches(leaf, list(leaves), 1, 0.7)]
    while section and section not in known:
        section = section.rpartition(".")[0]
    prefix = f"{section}." if section else ""
    siblings = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
    names = ", ".join(name for name in siblings if "." not in name)
    hint = f"did you mean `{found[0]}`? " if found else ""
    return f"a known key ({hint}{f'`{section}`' if section else 'The top level'} has {names})"


def close(value: Any, options: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing when no option is close."""
    found = difflib.get_close_matches(str(value), list(options), 1, 0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


def literals(key: str, schema: type[BaseModel]) -> list[str]:
    """The texts that a key with a closed list of values may hold."""
    closed = (part for part in _parts(_annotation(key, schema)) if get_origin(part) is Literal)
    return [str(value) for part in closed for value in get_args(part)]


def optional(key: str, schema: type[BaseModel]) -> bool:
    """Whether a key may be null."""
    return type(None) in _parts(_annotation(key, schema))


def description(key: str, schema: type[BaseModel]) -> str:
    """The schema's words about a key."""
    found = dict(keys(schema)).get(key)
    return (found and found.description) or "it has no default"


def _annotation(key: str, schema: type[BaseModel]) -> Any:
    found = dict(keys(schema)).get(key)
    return None if found is None else found.annotation


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(get_args(part)[0] if get_origin(part) is Annotated else part for part in parts)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
