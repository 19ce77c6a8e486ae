"""A user's own parts: what ``{"_target_": "module.Name", **arguments}`` in a configuration names, imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from distill.errors import UserError


def make(key: str, component: dict[str, Any], **given: Any) -> Any:
    """Calls the target with its arguments and ``given``; it has passed the allow-list (``config.targets``).

    Raises:
        UserError: there is no such thing, or it does not take the arguments.
    """
    target, arguments = _resolved(key, component)
    try:
        return target(**given, **arguments)
    except UserError:
        raise
    except Exception as error:
        raise _refusal(key, component, error) from error


def bind(key: str, component: dict[str, Any]) -> Callable[..., Any]:
    """The target as a function whose keyword arguments are the component's.

    Raises:
        UserError: there is no such thing.
    """
    target, arguments = _resolved(key, component)
    return partial(target, **arguments)


def _resolved(key: str, component: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    arguments = dict(component)
    module, _, name = arguments.pop("_target_").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name), arguments
    except Exception as error:
        raise _refusal(key, component, error) from error


def _refusal(key: str, component: dict[str, Any], error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    allowed = f"a class or function that can be imported and takes the arguments beside it ({reason})"
    return UserError(f"{key}._target_", component["_target_"], allowed)
