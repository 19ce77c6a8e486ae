"""Exactly so many of the largest or smallest values, of one tensor or of many without ever joining them.

Of one tensor by a partial sort; of many by a radix selection on the bits of fp32, where two histograms of 2¹⁶ buckets
find the value at which the selection ends. Values are compared as fp32; -0.0 equals 0.0; of equal values those of
lowest index are taken, over many tensors those of the first ones. The result is the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parts = Callable[[], Iterable[Tensor]]
"""Many tensors, one after the other; called once for every pass over them."""

_HALF = 16
_BUCKETS = 1 << _HALF
_SIGN = _BUCKETS // 2
_PIECE = 1 << 18
"""Values handled at once: a few times what a histogram holds, so that adding it up costs little."""


def largest(values: Tensor, count: int) -> Tensor:
    """True at the ``count`` largest of ``values``: bool, of their shape.

    Raises:
        ValueError: there are fewer values, or NaN is among them.
    """
    # The negative of the largest number of each sign is the smallest: the order is reversed, ties are not.
    return smallest(-values.detach().float(), count)


def smallest(values: Tensor, count: int) -> Tensor:
    """True at the ``count`` smallest of ``values``: bool, of their shape.

    Raises:
        ValueError: there are fewer values, or NaN is among them.
    """
    return smallest_each(values, [count])[0]


def smallest_each(values: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """:func:`smallest` for several counts, found in one pass over the values.

    Raises:
        ValueError: there are fewer values than one of the counts, or NaN is among them.
    """
    flat = values.detach().reshape(-1).float().cpu().numpy()
    if np.isnan(flat).any():
        raise ValueError("NaN has no place in an order")
    if max(counts) > len(flat):
        raise ValueError(f"{max(counts)} values to select, but there are {len(flat)}")
    last = sorted({count - 1 for count in counts if count})
    ordered = np.partition(flat, last) if last else flat
    return [_up_to(flat, ordered, count).reshape(values.shape) for count in counts]


def _up_to(flat: np.ndarray[Any, Any], ordered: np.ndarray[Any, Any], count: int) -> Tensor:
    if not count:
        return torch.zeros(len(flat), dtype=torch.bool)
    last = ordered[count - 1]
    mask = flat < last
    missing = count - int(np.count_nonzero(mask))
    mask[np.flatnonzero(flat == last)[:missing]] = True
    return torch.from_numpy(mask)


def largest_of_all(parts: Parts, count: int) -> Iterator[Tensor]:
    """One mask per tensor of ``parts``, true at the ``count`` largest values of all of them together.

    Raises:
        ValueError: there are fewer values, or NaN is among them.
    """
    return _select(parts, count, descending=True)


def smallest_of_all(parts: Parts, count: int) -> Iterator[Tensor]:
    """One mask per tensor of ``parts``, true at the ``count`` smallest values of all of them together.

    Raises:
        ValueError: there are fewer values, or NaN is among them.
    """
    return _select(parts, count, descending=False)


def _select(parts: Parts, count: int, descending: bool) -> Iterator[Tensor]:
    bucket, before = _reach(_histogram(parts, descending), count)
    low, within = _reach(_histogram(parts, descending, bucket), count - before)
    last = ((bucket - _SIGN) << _HALF) + low
    ties = count - before - within
    for values in parts():
        keys = _keys(values, descending)
        mask = keys < last
        if ties:
            level = torch.nonzero(keys == last).reshape(-1)[:ties]
            mask[level] = True
            ties -= len(level)
        yield mask.reshape(values.shape)


def _keys(values: Tensor, descending: bool) -> Tensor:
    """int32 ``[N]`` in the order of the values, or in the opposite one."""
    # Adding zero turns -0.0 into 0.0.
    bits = (values.detach().reshape(-1).float() + 0.0).view(torch.int32)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ~keys if descending else keys


def _histogram(parts: Parts, descending: bool, bucket: int | None = None) -> Tensor:
    """``[2¹⁶]``: how many keys have each upper half; or, of the keys with upper half ``bucket``, each lower half."""
    counts = torch.zeros(_BUCKETS, dtype=torch.int64)
    for values in parts():
        for piece in torch.split(values.detach().reshape(-1), _PIECE):
            if bool(piece.isnan().any()):
                raise ValueError("NaN has no place in an order")
            keys = _keys(piece, descending)
            halves = (keys >> _HALF) + _SIGN
            if bucket is not None:
                halves = keys[halves == bucket] & (_BUCKETS - 1)
            counts += torch.bincount(halves, minlength=_BUCKETS)
    return counts


def _reach(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The first bucket up to which there are at least ``wanted`` values, and how many lie before it."""
    upto = counts.cumsum(0)
    if wanted > int(upto[-1]):
        raise ValueError(f"{wanted} values to select, but there are {int(upto[-1])}")
    bucket = int(torch.searchsorted(upto, wanted))
    return bucket, int(upto[bucket] - counts[bucket])
