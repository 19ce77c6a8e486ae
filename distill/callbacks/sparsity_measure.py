"""One measurement of the live student: counts against θ₀, against the last measurement, and of the rounding null.

Each rank measures its share of the tensors, or of each tensor where they are in shards. Everything is a sum of counts
over coordinates that one rank looked at, so the numbers do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill import distributed, sharding, watchdog
from distill.analysis.distribution import Histogram, histogram
from distill.analysis.expectation import GRIDS, Profile, expected_within, noise_scale, profile
from distill.analysis.live import Weights
from distill.analysis.source import Folder
from distill.analysis.sparsity import PRECISIONS, TOLERANCES, Counts, Pair, compare, pack, share, unpack
from distill.callbacks.snapshots import Snapshot, Writer
from distill.errors import RunError
from distill.sharding import Piece

KEY = "callbacks.sparsity"


@dataclass(frozen=True)
class Measurement:
    """Counts of every tensor by name: ``since_start`` against θ₀, ``since_last`` against the last measurement (None
    where that is not known), ``null`` of a structureless update of the same norm. ``spread`` are histograms of abs(Δ)
    by precision, None where nobody asked."""

    since_start: dict[str, Pair]
    since_last: dict[str, Pair] | None
    null: dict[str, Pair]
    spread: dict[str, Histogram] | None


class Measure:
    """Measures ``weights`` against the tensors of the folder ``source`` that ``pairs`` (live name, source name) match.

    What the null needs of θ₀ is read at the first measurement and kept: a few thousand numbers a tensor.
    """

    def __init__(self, source: Path, weights: Weights, pairs: tuple[tuple[str, str], ...]) -> None:
        self.source, self.weights, self.pairs = source, weights, pairs
        self.names = [name for name, _ in pairs]
        self._profiles: dict[str, Profile] = {}
        self._grids = torch.empty(0)

    def run(
        self, step: int, last: Snapshot | None, writer: Writer | None, *, from_start: bool, spread: bool
    ) -> Measurement:
        """A collective. ``last`` is the last measurement's snapshot; ``from_start`` says that θ₀ is in its place, and
        ``writer`` takes the weights as they are now. ``spread`` asks for the histogram of abs(Δ).

        Raises:
            RunError: a weight holds NaN or infinity.
        """
        start, since, moved = dict[str, Pair](), dict[str, Pair](), dict[str, torch.dtype]()
        octaves = torch.zeros(len(PRECISIONS), 256, dtype=torch.int64) if spread else None
        with Folder(self.source, KEY) as folder:
            for name, before, piece in self._pieces(folder):
                begin, size = piece.start, piece.values.numel()
                start[name] = compare(before, piece.values, octaves)
                if name not in self._profiles and not len(self._grids):
                    self._profiles[name] = profile(before)
                if last is not None:
                    since[name] = compare(last.read(name, begin, size), piece.values)
                if writer is not None:
                    writer.add(name, begin, piece.values)
                moved[name] = piece.values.dtype
                watchdog.progress()
        total = self._sum(start)
        _refuse_broken(total, step)
        found = self._sum(since) if last is not None else total if from_start else None
        return Measurement(total, found, self._null(total, moved), _histograms(octaves))

    def _pieces(self, folder: Folder) -> Iterator[tuple[str, Tensor, Piece]]:
        """What this rank measures: name, θ₀ there, and the piece as it is now."""
        mine = set(share(self.names, distributed.rank(), distributed.world_size()))
        for name, before in self.pairs:
            weight = self.weights[name]
            piece = sharding.piece(weight.parameters[0]) if weight.plain and weight.parameters else None
            if piece is not None:
                yield name, folder.tensor(before).flatten()[piece.start :][: len(piece.values)], piece
                continue
            # Merging an adapter takes the whole layer, whose weights may be in shards.
            with sharding.gathered(weight.parameters):
                if name in mine:
                    yield name, folder.tensor(before).flatten(), Piece(0, weight.read().flatten())

    def _sum(self, measured: Mapping[str, Pair]) -> dict[str, Pair]:
        # Sums of a table in which each coordinate was measured by one rank.
        counts, energies = (distributed.all_sum(part) for part in pack(self.names, measured))
        return unpack(self.names, counts, energies)

    def _null(self, total: Mapping[str, Pair], dtypes: Mapping[str, torch.dtype]) -> dict[str, Pair]:
        if not len(self._grids):
            grids = torch.zeros(len(self.names), GRIDS, dtype=torch.int64)
            for row, name in enumerate(self.names):
                if name in self._profiles:
                    grids[row] = self._profiles[name].grids()
            self._grids = distributed.all_sum(grids)
        energies = torch.tensor([total[name]["fp32"].update_energy for name in self.names], dtype=torch.float64)
        within = torch.zeros(len(self.names), len(PRECISIONS), len(TOLERANCES), dtype=torch.float64)
        scales = {dtype: noise_scale(self._grids, energies, dtype) for dtype in set(dtypes.values())}
        for row, name in enumerate(self.names):
            if name in dtypes:
                sigma = float(scales[dtypes[name]][row])
                within[row] = expected_within(self._profiles[name], sigma, dtypes[name])
        # Whole coordinates: what is left of the order in which ranks add goes with the fraction.
        counts = distributed.all_sum(within).round().long()
        return {name: _pair(total[name], counts[row]) for row, name in enumerate(self.names)}


def _histograms(octaves: Tensor | None) -> dict[str, Histogram] | None:
    if octaves is None:
        return None
    return {precision: histogram(row) for precision, row in zip(PRECISIONS, distributed.all_sum(octaves), strict=True)}


def _refuse_broken(pairs: Mapping[str, Pair], step: int) -> None:
    broken = [name for name, pair in pairs.items() if not all(counts.finite for counts in pair.values())]
    if broken:
        raise RunError(f"`{broken[0]}` holds NaN or infinity at step {step}; the last checkpoint is intact.")


def _pair(observed: Pair, within: Tensor) -> Pair:
    """The null's counts: energies are the observed ones, which it is matched to."""
    return {
        precision: Counts(counts.numel, tuple(row), counts.update_energy, counts.source_energy)
        for (precision, counts), row in zip(observed.items(), within.tolist(), strict=True)
    }
