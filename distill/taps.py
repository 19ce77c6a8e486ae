"""What modules inside of networks give on the way: features, by hooks that are there only while they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from distill.config import suggest
from distill.errors import UserError


class Taps:
    """The outputs of some modules, by the name they are wanted under."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self._given: dict[str, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, every forward pass of a module replaces what it gave before; outside, nothing is held."""
        hooks = [module.register_forward_hook(self._keeping(name)) for name, module in self.modules.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._given = {}

    def __getitem__(self, name: str) -> Tensor:
        """What the module gave last, with its graph."""
        return self._given[name]

    def _keeping(self, name: str) -> Any:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            self._given[name] = _tensor(output)

        return keep


def find(model: nn.Module, name: str, key: str) -> nn.Module:
    """The module of that name.

    Raises:
        UserError: named ``key``; there is none.
    """
    found: dict[str, nn.Module] = dict(model.named_modules())
    if name not in found or not name:
        near = suggest.close(name, filter(None, found)) or _inside(found, name)
        raise UserError(key, name, f"the name of a module inside of the model{near}")
    return found[name]


def _inside(found: Mapping[str, nn.Module], name: str) -> str:
    """What there is where a name that is like no other goes astray."""
    while name not in found:
        name = name.rpartition(".")[0]
    inner = [child for child, _ in found[name].named_children()]
    shown = ", ".join(inner[:8]) + (", …" if inner[8:] else "")
    return f" ({name or 'it'} has {shown})" if inner else ""


def _tensor(output: Any) -> Tensor:
    """A module's output, or the states in what transformers' models give."""
    states = getattr(output, "last_hidden_state", output)
    found: Tensor = states[0] if isinstance(states, tuple | list) else states
    return found
