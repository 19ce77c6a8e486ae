"""The effective weights of a live model by checkpoint name, adapters merged on the fly, the model left alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.analysis.source import BUFFER

_PEFT_PREFIX = "base_model.model."
_SAVED_COPY = re.compile(r"\.modules_to_save\.[^.]+")


@dataclass(frozen=True)
class Weight:
    """One tensor of a live model: ``read()`` gives its value now, computed from ``parameters``.

    ``plain`` says that it is the one parameter itself.
    """

    read: Callable[[], Tensor]
    parameters: tuple[Tensor, ...]
    plain: bool = True


Weights = dict[str, Weight]


def live_weights(model: nn.Module) -> tuple[Weights, list[str]]:
    """Weights by name, and the names that are tied to a tensor already listed.

    Parameters of a ``transformers`` model carry their own names. In a ``peft`` model the names are those of the merged
    export: an adapted layer reads as its weight after merging (W + scaling·BA for LoRA), computed on a copy of that
    layer, and a module trained in full replaces its original. A parameter is listed once, however often it is used.
    Buffers of floats that a checkpoint holds (a router's bias, a decay) are listed, too: other tools see them there.
    Those that ``source.BUFFER`` names are not: running statistics follow the data, nothing trains them.
    """
    adapted = {name: module for name, module in model.named_modules() if _is_adapted(module)}
    readers: Weights = {}
    tied: list[str] = []
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((owner for owner in adapted if name.startswith(f"{owner}.")), None)
        if owner is not None and not name.startswith(f"{owner}.base_layer."):
            continue
        if ".original_module." in name:
            continue
        plain = _plain(name)
        if owner is not None:
            layer = adapted[owner]
            merged = _merged(layer, name.rpartition(".")[2])
            readers[plain] = Weight(merged, tuple(layer.parameters()), plain=False)
        elif id(parameter) in seen:
            tied.append(plain)
        else:
            readers[plain] = Weight(parameter.detach, (parameter,))
        seen.add(id(parameter))
    saved = model.state_dict().keys()
    floats = [name for name, buffer in model.named_buffers() if name in saved and buffer.is_floating_point()]
    buffers = [name for name in floats if not BUFFER.search(name)]
    return readers | {_plain(name): Weight(partial(model.get_buffer, name), ()) for name in buffers}, tied


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and callable(getattr(module, "merge", None))


def _plain(name: str) -> str:
    name = _SAVED_COPY.sub("", name.removeprefix(_PEFT_PREFIX))
    return name.replace(".base_layer.", ".")


def _merged(layer: Any, attribute: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        merged = copy.deepcopy(layer)
        with torch.no_grad():
            merged.merge()
        weight: Tensor = getattr(merged.get_base_layer(), attribute)
        return weight.detach()

    return read
