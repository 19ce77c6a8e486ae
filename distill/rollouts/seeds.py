"""Randomness as a pure function of what is drawn, so that no draw depends on batch split, order or world size."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15


def row_seed(seed: int, step: int, sample_id: int, copy: int) -> int:
    """Seed of one rollout, in [0, 2**63): the same on every machine, and for nothing else than these four numbers."""
    return _hash(b"row", seed, step, sample_id, copy) >> 1


def teacher_seed(seed: int) -> int:
    """Seed of the teacher's draws in the rollout that ``seed`` is of."""
    return _hash(b"teacher", seed) >> 1


def step_uniform(seed: int, step: int) -> float:
    """One draw from [0, 1) per optimizer step."""
    return (_hash(b"step", seed, step) >> 11) * 2.0**-53


def uniforms(seeds: NDArray[np.uint64], position: int | NDArray[np.uint64]) -> NDArray[np.float64]:
    """Draws from [0, 1), one per row ``[B]``: number ``position`` (0, 1, ...) of each row's splitmix64 stream.

    ``position`` is one for all rows, or one per row.

    splitmix64 is Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). Its state is a
    counter, so any position costs the same.
    """
    # Products of arrays wrap around at 2**64 in silence, those of numbers do not.
    bits = seeds + (np.asarray(position, dtype=np.uint64).reshape(-1) + np.uint64(1)) * np.uint64(_GAMMA)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    draws: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws


def _hash(purpose: bytes, *numbers: int) -> int:
    data = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=purpose).digest(), "little")
