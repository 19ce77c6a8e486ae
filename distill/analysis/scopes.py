"""From measured tensors to the numbers of one tensor, of a part of the model or of all of it, each beside its null."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distill.analysis import overlap, principal, regions, spectrum
from distill.analysis.concentration import FRACTIONS, unpacked
from distill.analysis.naming import GROUPS, place
from distill.analysis.sparsity import LABELS, TOLERANCES, total
from distill.analysis.tensor import Measured, Part

COORDINATES = (
    "numel",
    *(f"sparsity_{label}" for label in LABELS),
    *("update_norm", "relative_norm", "energy_share"),
    *(f"top_energy_{fraction:g}" for fraction in FRACTIONS),
    *regions.METRICS,
    *overlap.METRICS,
)
"""Metrics that sums of counts give, of a tensor as of a model; shares are weighted by coordinates."""
MATRICES = (*spectrum.METRICS, *principal.METRICS)
"""Metrics of one matrix. Of several there are ``METRIC.median`` and ``METRIC.mean``, every matrix counting once."""
OF_TENSOR = (*COORDINATES, *MATRICES)
OF_SCOPE = (*COORDINATES, *(f"{metric}.{over}" for metric in MATRICES for over in ("median", "mean")))
WITHOUT_NULL = frozenset({"numel"})


@dataclass(frozen=True)
class Beside:
    """A number and its null: mean and standard deviation (n - 1) over the draws, difference, and that in deviations.

    None is what is not defined: everything but ``observed`` without draws, ``null_sd`` and ``z`` with a single draw,
    ``z`` where the draws do not differ, as of a number that the null is made to match.
    """

    observed: float
    null: float | None = None
    null_sd: float | None = None
    difference: float | None = None
    z: float | None = None


Numbers = dict[str, float]
Select = Callable[[Measured], Part]


def beside(observed: Numbers, draws: Sequence[Numbers]) -> dict[str, Beside]:
    """Every observed number beside the null's; a draw that does not have it, leaves it without a null."""
    found = {}
    for name, value in observed.items():
        nulls = [draw[name] for draw in draws if name in draw]
        if name in WITHOUT_NULL or not nulls or len(nulls) < len(draws):
            found[name] = Beside(value)
            continue
        mean = statistics.fmean(nulls)
        sd = statistics.stdev(nulls) if len(nulls) > 1 else None
        # Equal draws differ by the rounding of their mean.
        clear = sd is not None and sd > 1e-12 * abs(mean)
        found[name] = Beside(value, mean, sd, value - mean, (value - mean) / sd if clear and sd else None)
    return found


def of_tensor(measured: Measured, everything: Sequence[Measured], precision: str) -> dict[str, Beside]:
    """OF_TENSOR as far as defined; ``everything`` is the whole model, for shares of its energy."""
    return _of([measured], everything, precision, _plain)


def of_scope(members: Sequence[Measured], everything: Sequence[Measured], precision: str) -> dict[str, Beside]:
    """OF_SCOPE as far as defined."""
    return _of(members, everything, precision, _averaged)


def _of(
    members: Sequence[Measured],
    everything: Sequence[Measured],
    precision: str,
    over_matrices: Callable[[list[Numbers]], Numbers],
) -> dict[str, Beside]:
    def numbers(select: Select) -> Numbers:
        parts = [select(measured) for measured in members]
        energy = math.fsum(select(measured).counts.update_energy for measured in everything)
        return _sums(parts, energy) | over_matrices([part.matrix for part in parts if part.matrix])

    draws = range(len(everything[0].draws))
    return beside(
        numbers(lambda measured: measured.observed[precision]),
        [numbers(lambda measured, draw=draw: measured.draws[draw][precision]) for draw in draws],  # type: ignore[misc]
    )


def _sums(parts: Sequence[Part], energy: float) -> Numbers:
    whole = total(part.counts for part in parts)
    found: Numbers = {"numel": whole.numel}
    if whole.numel:
        found |= {f"sparsity_{label}": whole.sparsity(t) for label, t in zip(LABELS, TOLERANCES, strict=True)}
    found["update_norm"] = math.sqrt(whole.update_energy)
    if math.isfinite(whole.relative_norm):
        found["relative_norm"] = whole.relative_norm
    found["energy_share"] = whole.update_energy / energy if energy else 0.0
    top = unpacked(part.top for part in parts)
    found |= {f"top_energy_{fraction:g}": top.top_energy(fraction) for fraction in FRACTIONS}
    covered = [part.coverage for part in parts if part.coverage is not None]
    both = [part.shared for part in parts if part.shared is not None]
    found |= sum(covered[1:], covered[0]).metrics() if covered else {}
    return found | (sum(both[1:], both[0]).metrics() if both else {})


def _plain(matrices: list[Numbers]) -> Numbers:
    return matrices[0] if matrices else {}


def _averaged(matrices: list[Numbers]) -> Numbers:
    found: Numbers = {}
    for name in MATRICES:
        values = [matrix[name] for matrix in matrices if name in matrix]
        if values:
            found |= {f"{name}.median": statistics.median(values), f"{name}.mean": statistics.fmean(values)}
    return found


def scopes(names: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    """(scope, name, tensors) of the model, its groups, its layers and the modules of each layer, as in tables.py."""
    names = list(names)
    places = {name: place(name) for name in names}
    yield "model", "all", names
    for group in GROUPS:
        if members := [name for name in names if places[name].group == group]:
            yield "group", group, members
    yield from _by("layer", names, lambda name: None if places[name].layer is None else str(places[name].layer))
    yield from _by(
        "module",
        names,
        lambda name: None if places[name].layer is None else f"{places[name].layer}.{places[name].module}",
    )


def _by(scope: str, names: Sequence[str], key: Callable[[str], str | None]) -> Iterator[tuple[str, str, list[str]]]:
    members: dict[str, list[str]] = {}
    for name in names:
        found = key(name)
        if found is not None:
            members.setdefault(found, []).append(name)
    ordered: Mapping[str, list[str]] = dict(sorted(members.items(), key=lambda item: int(item[0].partition(".")[0])))
    yield from ((scope, name, tensors) for name, tensors in ordered.items())
