"""Counts the bytes of every tensor that exists while code runs on fake tensors: nothing is computed or allocated.

Source of the technique: PyTorch's fake tensors and dispatch modes, which see each operator of a forward or backward
pass, recomputation under a checkpoint included.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill.planning.malloc import Heap

aten = torch.ops.aten
OBJECT = 1024
"""Bytes on the heap beside each tensor: the tensor, its storage and its node of the graph."""
INSIDE: dict[Any, Callable[[Any], int]] = {
    aten.logsumexp.default: lambda args: 2 * args[0].nbytes,
    aten.isfinite.default: lambda args: args[0].nbytes + args[0].numel(),
}
"""Temporaries that CPU kernels make inside one operator, where no mode sees them."""


@dataclass(frozen=True)
class Peak:
    """The moment of most memory: bytes of the live tensors by category, and what the process then holds."""

    live: dict[str, int] = field(default_factory=dict)
    resident: int = 0

    @property
    def total(self) -> int:
        return sum(self.live.values())


class Tracker(TorchDispatchMode):
    """Attributes: ``live`` bytes by category now, ``peak`` since the last :meth:`restart`."""

    def __init__(self, on_heap: bool = True) -> None:
        """``on_heap``: memory is what glibc keeps resident; otherwise what tensors take."""
        super().__init__()
        self.on_heap = on_heap
        self.live: Counter[str] = Counter()
        self.heap = Heap()
        self.peak = Peak()
        self.category = "other"
        self._paused = False
        self._blocks: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            # Checks for finite values read a number that fake tensors do not have.
            return True
        if func in INSIDE and not self._paused:
            self._pass(INSIDE[func](args))
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            self.add_all(result)
        return result

    def add_all(self, tree: Any) -> None:
        """Counts every tensor of a structure under the current category."""
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor):
                self.add(leaf)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is made here is not counted."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def add(self, tensor: Tensor, category: str | None = None) -> None:
        """Counts a tensor's storage, once, under ``category`` (default: the current one)."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._blocks:
            return
        size, category = storage.nbytes(), category or self.category
        self._blocks[key] = (category, size)
        self.live[category] += size
        self.heap.allocate(-key, OBJECT)
        self.heap.allocate(key, size)
        weakref.finalize(storage, self._free, key)
        self._see()

    def relabel(self, tensor: Tensor, category: str) -> None:
        """Moves a counted tensor to another category."""
        key = tensor.untyped_storage()._cdata
        if key in self._blocks:
            former, size = self._blocks[key]
            self._blocks[key] = (category, size)
            self.live[former] -= size
            self.live[category] += size

    def watch(self, model: nn.Module, category: str) -> None:
        """Counts a model's weights, and its gradients as such from the moment they are accumulated."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.add(tensor, category)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: self.relabel(p.grad, "gradients"))

    def restart(self) -> None:
        """Forgets the peak so far."""
        self.peak = Peak()
        self._see()

    @contextmanager
    def within(self, category: str) -> Iterator[None]:
        """New tensors count under ``category``."""
        former, self.category = self.category, category
        try:
            yield
        finally:
            self.category = former

    def _pass(self, size: int) -> None:
        """A block that exists for a moment."""
        self.live[self.category] += size
        self.heap.allocate(0, size)
        self._see()
        self.live[self.category] -= size
        self.heap.free(0)

    def _free(self, key: int) -> None:
        category, size = self._blocks.pop(key)
        self.live[category] -= size
        self.heap.free(key)
        self.heap.free(-key)

    def _see(self) -> None:
        resident = self.heap.resident if self.on_heap else sum(self.live.values())
        if resident > self.peak.resident:
            self.peak = Peak({name: size for name, size in self.live.items() if size}, resident)
