"""Update sparsity and movement, coordinate by coordinate (arXiv 2606.13657).

θ₀ are the source weights, θ the trained ones, Δ = θ - θ₀. Everything is measured twice: in ``bf16`` (both sides rounded
to bfloat16, subtracted in bfloat16: what a released checkpoint shows) and in ``fp32`` (what an fp32 master shows).
Counts are integers and energies float64 sums, so they add up over pieces, tensors and ranks without averaging shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from distill.analysis.naming import place

LABELS = ("0", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4")
"""The tolerances as they appear in metric keys and column names."""
TOLERANCES = tuple(float(label) for label in LABELS)
HEADLINE = 1e-5
PRECISIONS = ("bf16", "fp32")
PIECE = {"cpu": 1 << 15, "cuda": 1 << 24}
"""Coordinates handled at once. On a CPU what fits its cache and is too small for torch to split over threads: their
barriers cost more than they save, and sums stay the same for any number of threads."""

K = TypeVar("K")


@dataclass(frozen=True)
class Counts:
    """Addable measurements of one precision.

    ``within[i]`` is #{abs(Δ) <= TOLERANCES[i]}; ``update_energy`` is ΣΔ² and ``source_energy`` Σθ₀². An energy is not
    finite when a tensor holds a NaN or an infinity.
    """

    numel: int = 0
    within: tuple[int, ...] = (0,) * len(TOLERANCES)
    update_energy: float = 0.0
    source_energy: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.numel + other.numel,
            tuple(a + b for a, b in zip(self.within, other.within, strict=True)),
            self.update_energy + other.update_energy,
            self.source_energy + other.source_energy,
        )

    def sparsity(self, tolerance: float = HEADLINE) -> float:
        """Share of coordinates with abs(Δ) <= ``tolerance``, which one of TOLERANCES; NaN for no coordinates."""
        return self.within[TOLERANCES.index(tolerance)] / self.numel if self.numel else math.nan

    @property
    def relative_norm(self) -> float:
        """‖Δ‖/‖θ₀‖: 0 without any update, infinite for an update of a source that is zero."""
        if self.source_energy == 0:
            return math.inf if self.update_energy else 0.0
        return math.sqrt(self.update_energy / self.source_energy)

    def energy_share(self, whole: Counts) -> float:
        """Share of the whole's ΣΔ², 0 when nothing moved."""
        return self.update_energy / whole.update_energy if whole.update_energy else 0.0

    @property
    def finite(self) -> bool:
        return math.isfinite(self.update_energy) and math.isfinite(self.source_energy)


Pair = dict[str, Counts]
"""Counts by precision."""


def compare(source: Tensor, trained: Tensor, octaves: Tensor | None = None) -> Pair:
    """Counts of one tensor in both precisions, on the trained tensor's device; memory is a few times PIECE.

    Thresholds are compared in fp32: a tolerance is the fp32 number nearest to it. To ``octaves`` (int64 ``[precisions,
    256]``, on the CPU) the coordinates by the biased exponent of fp32 abs(Δ) are added.

    Raises:
        ValueError: the shapes differ.
    """
    if source.shape != trained.shape:
        raise ValueError(f"source has shape {tuple(source.shape)}, trained {tuple(trained.shape)}")
    device = trained.device
    within = torch.zeros(len(PRECISIONS), len(TOLERANCES), dtype=torch.int64, device=device)
    energies = torch.zeros(len(PRECISIONS), 2, dtype=torch.float64, device=device)
    for before, after in pieces(source, trained):
        for row, (start, delta) in enumerate(differences(before.to(device), after)):
            within[row] += _within(delta.abs())
            if octaves is not None:
                # The upper byte of what is left without the sign.
                exponents = (delta.view(torch.int32) >> 23).to(torch.uint8)
                octaves[row] += torch.bincount(exponents, minlength=256).cpu()
            energies[row] += torch.stack([_energy(delta), _energy(start)])
    return {
        precision: Counts(trained.numel(), tuple(counts), *sums)
        for precision, counts, sums in zip(PRECISIONS, within.tolist(), energies.tolist(), strict=True)
    }


def _within(sizes: Tensor) -> Tensor:
    """How many of ``sizes`` (fp32) are at most each of TOLERANCES."""
    if sizes.device.type == "cpu":
        # NumPy counts seven times faster than torch does here, where a measurement spends its time.
        values = sizes.numpy()
        return torch.tensor([np.count_nonzero(values <= np.float32(tolerance)) for tolerance in TOLERANCES])
    thresholds = torch.tensor(TOLERANCES, dtype=torch.float32, device=sizes.device)
    return torch.stack([torch.count_nonzero(sizes <= threshold) for threshold in thresholds])


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of each flattened tensor at a time, without gradients."""
    size = PIECE[tensors[-1].device.type]
    return zip(*(torch.split(tensor.detach().reshape(-1), size) for tensor in tensors), strict=True)


def differences(source: Tensor, trained: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(θ₀, Δ) as fp32 values in each of PRECISIONS: cast, subtract in that precision, then widen."""
    for dtype in (torch.bfloat16, torch.float32):
        start = source.to(dtype)
        yield start.float(), (trained.to(dtype) - start).float()


def _energy(values: Tensor) -> Tensor:
    return values.double().square_().sum()


def total(counts: Iterable[Counts]) -> Counts:
    return sum(counts, Counts())


def total_pair(pairs: Iterable[Pair]) -> Pair:
    """Sum of pairs, precision by precision."""
    pairs = list(pairs)
    return {precision: total(pair[precision] for pair in pairs) for precision in PRECISIONS}


def group_by(pairs: Mapping[str, Pair], key: Callable[[str], K | None]) -> dict[K, Pair]:
    """Sums of the tensors that share a key, in order of first appearance; a key of None leaves a tensor out."""
    members: dict[K, list[Pair]] = {}
    for name, pair in pairs.items():
        found = key(name)
        if found is not None:
            members.setdefault(found, []).append(pair)
    return {found: total_pair(group) for found, group in members.items()}


def by_group(name: str) -> str:
    return place(name).group


def by_layer(name: str) -> int | None:
    return place(name).layer


def by_module(name: str) -> tuple[int, str] | None:
    """(layer, module), None outside the decoder blocks."""
    where = place(name)
    return None if where.layer is None else (where.layer, where.module)


def share(names: list[str], rank: int, world_size: int) -> list[str]:
    """The tensors a rank measures: round robin, so every tensor is measured by exactly one rank."""
    return names[rank::world_size]


def pack(names: list[str], measured: Mapping[str, Pair]) -> tuple[Tensor, Tensor]:
    """Measurements as tensors that ranks can sum: int64 ``[names, precisions, 1 + tolerances]``, float64 ``[…, 2]``.

    Tensors this rank did not measure are zero, so a sum over ranks leaves every number exactly as it was measured.
    """
    empty = dict.fromkeys(PRECISIONS, Counts())
    rows = [[measured.get(name, empty)[precision] for precision in PRECISIONS] for name in names]
    counts = torch.tensor([[[c.numel, *c.within] for c in row] for row in rows], dtype=torch.int64)
    energies = torch.tensor([[[c.update_energy, c.source_energy] for c in row] for row in rows], dtype=torch.float64)
    return counts, energies


def unpack(names: list[str], counts: Tensor, energies: Tensor) -> dict[str, Pair]:
    """Inverse of :func:`pack`."""
    return {
        name: {
            precision: Counts(numel, tuple(within), *sums)
            for precision, (numel, *within), sums in zip(PRECISIONS, count_rows, energy_rows, strict=True)
        }
        for name, count_rows, energy_rows in zip(names, counts.tolist(), energies.tolist(), strict=True)
    }
