"""Inner products of long vectors from short ones: a count sketch that is filled parameter by parameter.

Legend: ``d`` coordinates of all parameters together, ``r`` buckets.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor


class Sketch:
    """Folds a vector of named parts, ``lengths`` long each, to ``r`` = min(d, ``size``) numbers in fp64.

    Coordinate j goes to bucket j mod r with a pseudo-random sign, a hash of ``seed``, the part's name and place in it:
    ⟨Sa, Sb⟩ is ⟨a, b⟩ in the mean over signs. Where energy is spread evenly over the buckets its variance is (‖a‖²‖b‖²
    + ⟨a, b⟩²)/r, a relative standard error of √(2/r) for a squared norm (the count sketch of Charikar, Chen and
    Farach-Colton 2002; counting through in place of a random bucket is our formulation: no index is kept, and with a
    prime r neither rows nor columns of a matrix meet the same buckets). With d ≤ r nothing collides, there are no
    signs, and products are exact. The map is linear: parts, micro-batches and ranks may be added up in any order.
    """

    def __init__(self, lengths: Mapping[str, int], size: int, seed: int = 0) -> None:
        self.seed = seed
        self._starts: dict[str, int] = {}
        total = 0
        for name, length in lengths.items():
            self._starts[name] = total
            total += length
        self.exact = total <= size
        self.size = min(size, total)
        self._signs: dict[str, Tensor] = {}

    def empty(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """``[count, r]`` zeros to add to."""
        return torch.zeros(count, self.size, dtype=torch.float64, device=device)

    def add(self, total: Tensor, name: str, values: Tensor) -> None:
        """Adds what the part ``name`` contributes, of any shape, to ``total [r]``."""
        # Sums of a bucket in the narrow type of half-precision gradients would lose the later ones.
        flat = values.detach().reshape(-1).to(torch.promote_types(values.dtype, torch.float32))
        if not self.exact:
            flat = flat * self._sign(name, flat)
        first = self._starts[name] % self.size
        head = min(len(flat), self.size - first)
        total[first : first + head] += flat[:head]
        rest = flat[head:]
        rounds = len(rest) // self.size
        total += rest[: rounds * self.size].view(rounds, self.size).sum(0)
        tail = rest[rounds * self.size :]
        total[: len(tail)] += tail

    def forget(self) -> None:
        """Frees the signs, a byte per coordinate; they are hashed again when they are needed."""
        self._signs = {}

    def _sign(self, name: str, flat: Tensor) -> Tensor:
        if name not in self._signs:
            self._signs[name] = signs(zlib.crc32(f"{self.seed} {name}".encode()), len(flat), flat.device)
        return self._signs[name]


def signs(key: int, count: int, device: torch.device | str) -> Tensor:
    """int8 ``[count]`` of ±1: bit i mod 32 of a hash of ``key`` and i // 32, the same on every device.

    The hash is a finaliser of 32 bits, twice (Wellons' lowbias32, after MurmurHash3's), so that parts of different
    names do not share runs of words. No state is kept, and no generator is asked.
    """
    words = _mixed(torch.arange(-(-count // 32), dtype=torch.int32, device=device))
    words = _mixed(words ^ (key - (1 << 32) if key >> 31 else key))
    places = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    # Eight signs at once: a look-up of one number of 64 bits.
    table = ((places & 1) * 2 - 1).to(torch.int8).view(torch.int64)[:, 0]
    return table[words.view(torch.uint8).int()].view(torch.int8)[:count]


def _mixed(words: Tensor) -> Tensor:
    """int32 in, int32 out, one to one; products wrap. A shift to the right brings the sign along, which is masked."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, 1)):
        words = (words ^ (words >> shift & (1 << (32 - shift)) - 1)) * factor
    return words
