"""Order of the samples: a pure function of (seed, consumed samples), so that a resumed run continues exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def indices(size: int, seed: int, start: int, count: int) -> list[int]:
    """Entries ``[start, start + count)`` of an endless stream of per-epoch permutations of ``range(size)``.

    ``start`` counts samples of the whole job, so the stream is the same for every world size and batch size.

    >>> indices(5, 0, 0, 3) + indices(5, 0, 3, 4) == indices(5, 0, 0, 7)
    True

    Raises:
        ValueError: for an empty dataset or a negative position.
    """
    if size <= 0 or seed < 0 or start < 0 or count < 0:
        raise ValueError(
            f"size must be positive, seed, start and count not negative, but are {size}, {seed}, {start}, {count}."
        )
    stream: list[int] = []
    while len(stream) < count:
        epoch, offset = divmod(start + len(stream), size)
        stream += _of_size(size)(seed, epoch)[offset : offset + count - len(stream)].tolist()
    return stream


@lru_cache(maxsize=8)
def _of_size(size: int) -> Callable[[int, int], NDArray[np.int64]]:
    """(seed, epoch) → permutation. Each size remembers its own: small parts of a mixture leave those of large ones."""

    @lru_cache(maxsize=2)
    def permutation(seed: int, epoch: int) -> NDArray[np.int64]:
        # Sorting Philox's raw words, because numpy keeps that stream fixed for ever, but not `Generator.permutation`.
        words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(size)
        return np.argsort(words, kind="stable")

    return permutation
