"""The coordinates of a flat vector that a mask selects: how they are kept, gathered, stepped and put back.

``N`` coordinates of the vector, ``S`` slots of a state that is kept for it. Two forms of one interface:
:class:`Compact` keeps a state of the selected coordinates alone, :class:`Whole` one of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

WIDTH = 1 << 16
"""Coordinates of a block: positions in it take two bytes, and its values fit a core's cache."""
ALIGN = 16
"""torch's fused CPU kernels round the last N mod (elements of a vector register) coordinates differently. All widths of
registers divide this: blocks of such multiples, with a tail that stays a tail, give every coordinate the rounding it
has in a step of the whole vector."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By their bytes."""


class Selection(Protocol):
    """``slots`` is S, ``nbytes`` what the selection itself takes, ``count`` the selected coordinates."""

    numel: int
    count: int
    slots: int

    @property
    def nbytes(self) -> int: ...

    def selected(self) -> Tensor:
        """Bool [N]."""

    def pack(self, dense: Tensor) -> Tensor:
        """[N] → [S]: selected values, zero elsewhere."""

    def unpack(self, packed: Tensor, dense: Tensor) -> Tensor:
        """[S] → [N]: ``dense`` with the selected coordinates replaced, in place."""

    def windows(self, values: Tensor, master: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Stretches of S with their values, to be changed in place; then they are written to ``values`` [N].

        Coordinates outside keep their bits. ``master`` [S] takes the place of what ``values`` holds, if given.
        """


def integers(values: Tensor) -> Tensor:
    """The bits of floats, as integers of their size: what is multiplied with 0 there is 0, even if it was NaN."""
    return values.view(INTEGERS[values.element_size()])


def _raw(values: Tensor) -> Any:
    """What is indexed: on the CPU by numpy, which gathers and scatters in half of the time that torch takes."""
    return values if values.is_cuda else integers(values).numpy()


def _tensor(found: Any, dtype: torch.dtype) -> Tensor:
    return found if isinstance(found, Tensor) else torch.from_numpy(found).view(dtype)


class _Window(NamedTuple):
    """Coordinates ``[start, stop)`` of the vector, and the slots of those selected: ``taken`` ones, then a filling.

    ``bases`` are the starts of its blocks and the slots of each, if there are several.
    """

    start: int
    stop: int
    slots: slice
    taken: int
    bases: tuple[Tensor, Tensor] | None = None


class Compact:
    """Selected coordinates by their positions, two bytes each, and a state of as many slots (fp32).

    On the CPU each block's slots are filled up to a multiple of ALIGN, and the last N mod ALIGN coordinates all have
    one. A GPU, whose kernels know no tail, takes all blocks at once.
    """

    def __init__(self, mask: Tensor, *, at_once: bool | None = None) -> None:
        mask = mask.reshape(-1)
        self.numel, self.count = len(mask), int(torch.count_nonzero(mask))
        at_once = mask.is_cuda if at_once is None else at_once
        align = 1 if at_once else ALIGN
        self._body = self.numel - self.numel % align
        self._tail = mask[self._body :].clone()
        self._windows, positions, first = list[_Window](), [mask.new_empty(0, dtype=torch.int64)], 0
        for block, part in enumerate(mask[: self._body].split(WIDTH)):
            found = part.nonzero()[:, 0]
            positions.append(torch.nn.functional.pad(found, (0, -len(found) % align)))
            stop, end = block * WIDTH + len(part), first + len(positions[-1])
            self._windows.append(_Window(block * WIDTH, stop, slice(first, end), len(found)))
            first = end
        if at_once:
            counts = torch.tensor([window.taken for window in self._windows], device=mask.device)
            bases = torch.arange(len(counts), device=mask.device) * WIDTH
            self._windows = [_Window(0, self._body, slice(0, first), first, (bases, counts))]
        self._positions = torch.cat(positions).to(torch.uint16)
        self.slots = first + len(self._tail)

    @property
    def nbytes(self) -> int:
        return self._positions.nbytes + self._tail.nbytes

    def selected(self) -> Tensor:
        selected = torch.zeros(self.numel, dtype=torch.bool, device=self._tail.device)
        selected[self._body :] = self._tail
        for window in self._windows:
            _raw(selected)[window.start : window.stop][self._index(window)[: window.taken]] = 1
        return selected

    def pack(self, dense: Tensor) -> Tensor:
        dense = dense.detach().reshape(-1)
        packed, raw = dense.new_zeros(self.slots, dtype=torch.float32), _raw(dense)
        for window in self._windows:
            found = raw[window.start : window.stop][self._index(window)[: window.taken]]
            packed[window.slots][: window.taken] = _tensor(found, dense.dtype)
        packed[self.slots - len(self._tail) :] = dense[self._body :].masked_fill(~self._tail, 0)
        return packed

    def unpack(self, packed: Tensor, dense: Tensor) -> Tensor:
        raw = _raw(dense)
        for window in self._windows:
            self._put(raw, window, self._index(window), packed[window.slots].to(dense.dtype))
        self._put_tail(dense, packed[self.slots - len(self._tail) :])
        return dense

    def windows(self, values: Tensor, master: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        raw = _raw(values)
        for window in self._windows:
            if not window.taken:
                continue
            index = self._index(window)
            if master is None:
                taken = _tensor(raw[window.start : window.stop][index], values.dtype).float()
            else:
                taken = master[window.slots]
            yield window.slots, taken
            self._put(raw, window, index, taken.to(values.dtype))
        if len(self._tail):
            slots = slice(self.slots - len(self._tail), self.slots)
            taken = values[self._body :].to(torch.float32, copy=True) if master is None else master[slots]
            yield slots, taken
            self._put_tail(values, taken)

    def _index(self, window: _Window) -> Any:
        positions = self._positions[window.slots]
        if not positions.is_cuda and window.bases is None:
            return positions.numpy().astype(np.intp)
        index = positions.to(torch.int64)
        if window.bases is not None:
            index += torch.repeat_interleave(*window.bases, output_size=len(index))
        return index if index.is_cuda else index.numpy()

    def _put(self, raw: Any, window: _Window, index: Any, slots: Tensor) -> None:
        raw[window.start : window.stop][index[: window.taken]] = _raw(slots)[: window.taken]

    def _put_tail(self, dense: Tensor, slots: Tensor) -> None:
        tail = dense[self._body :]
        tail.copy_(torch.where(self._tail, slots.to(dense.dtype), tail))


@cache
def _eights(device: torch.device) -> Tensor:
    """For each byte, its bits as eight bools in one integer."""
    bits = (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1
    return bits.bool().view(torch.int64).reshape(-1)


class Whole:
    """The mask as one bit per coordinate, and a state of all coordinates in the vector's dtype.

    What a step does to a coordinate outside is undone: its bits are put back.
    """

    def __init__(self, mask: Tensor) -> None:
        mask = mask.reshape(-1)
        self.numel = self.slots = len(mask)
        self.count = int(torch.count_nonzero(mask))
        eight = torch.nn.functional.pad(mask, (0, -len(mask) % 8)).reshape(-1, 8)
        self._bits = (eight * (1 << torch.arange(8, device=mask.device))).sum(1).to(torch.uint8)

    @property
    def nbytes(self) -> int:
        return self._bits.nbytes

    def selected(self) -> Tensor:
        return self._selected(slice(0, self.numel))

    def pack(self, dense: Tensor) -> Tensor:
        packed = dense.reshape(-1).clone()
        integers(packed).mul_(self.selected())
        return packed

    def unpack(self, packed: Tensor, dense: Tensor) -> Tensor:
        return dense.copy_(torch.where(self.selected(), packed.reshape(-1).to(dense.dtype), dense))

    def windows(self, values: Tensor, master: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        width = self.numel if values.is_cuda else WIDTH
        for start in range(0, self.numel, width):
            window = slice(start, min(start + width, self.numel))
            stepped = values[window]
            before = integers(stepped).clone()
            yield window, stepped
            integers(stepped).bitwise_xor_(before).mul_(self._selected(window)).bitwise_xor_(before)

    def _selected(self, window: slice) -> Tensor:
        """Of a window that begins at a multiple of 8."""
        eights = _eights(self._bits.device).index_select(0, self._bits[window.start // 8 : -(-window.stop // 8)].int())
        return eights.view(torch.bool)[: window.stop - window.start]
