"""Measures the matched tensors of two checkpoints one after the other, as many at once as there are cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from distill.analysis.source import Folder, Match, refuse_not_finite
from distill.analysis.tensor import Measured, Options, measure
from distill.errors import UserError

Others = Mapping[str, str]
"""Source name → name in another run's checkpoint."""


def work(shape: tuple[int, ...]) -> float:
    """How long a tensor takes beside others, in a unit of its own: its coordinates, and a matrix's decompositions."""
    numel = 1.0
    for size in shape:
        numel *= size
    return numel * (30 + (min(shape) / 8 if len(shape) == 2 else 0)) + 1e4


def measured(
    source: Folder,
    trained: Folder,
    found: Match,
    other: Folder | None,
    others: Others,
    options: Options,
) -> Iterator[tuple[str, Measured]]:
    """(trained name, measurements) in the order of ``found.pairs``; reads a tensor when its turn has come.

    On a GPU where there is one. On a CPU each worker computes on one thread: matrices of a model's size keep one core
    busy, not several, and sums come out the same for any number of cores.

    Raises:
        UserError: a tensor holds NaN or infinity, or numbers too large for bfloat16.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def one(pair: tuple[str, str]) -> tuple[str, Measured]:
        name, before = pair
        start, end = source.tensor(before).to(device), trained.tensor(name).to(device)
        second = None
        if other is not None and before in others:
            second = other.tensor(others[before]).to(device)
            refuse_not_finite(second, other, others[before])
        result = measure(name, start, end, second, options)
        if not result.finite:
            refuse_not_finite(start, source, before)
            refuse_not_finite(end, trained, name)
            allowed = f"a checkpoint whose changes are finite ({name!r} minus the source overflows)"
            raise UserError(trained.key, str(trained.path), allowed)
        return name, result

    yield from _map(one, found.pairs, 1 if device.type == "cuda" else torch.get_num_threads())


def _map(
    function: Callable[[tuple[str, str]], tuple[str, Measured]], pairs: tuple[tuple[str, str], ...], workers: int
) -> Iterator[tuple[str, Measured]]:
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(function, pairs)
    finally:
        # After an error the tensors that wait are not worth measuring.
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
