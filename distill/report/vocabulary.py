"""What the columns of an analysis mean: a name in words, a family, and how a value is written."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

MOVED, CONCENTRATION, PLACES = "How many weights moved", "Where the movement sits", "Which weights moved"
SHAPE, SOURCE, RUNS = "Shape of the update", "Against the source's directions", "Two runs"
FAMILIES = (MOVED, CONCENTRATION, PLACES, SHAPE, SOURCE, RUNS)

_PLACE = {
    "principal": "principal",
    "low": "small",
    "principal_not_low": "principal but not small",
    "not_principal_or_low": "small, or not principal",
}
_NUMBER = r"(\d[\d.e+-]*)"
_MASK = rf"({'|'.join(sorted(_PLACE, key=len, reverse=True))})_{_NUMBER}_{_NUMBER}"


@dataclass(frozen=True)
class Quantity:
    """``short`` fits beside a chart; ``share`` is whether values are parts of a whole in [0, 1], written in percent."""

    key: str
    name: str
    short: str
    family: str
    share: bool


_PATTERNS: dict[str, tuple[str, str, str, bool]] = {
    "numel": ("weights", "weights", MOVED, False),
    rf"sparsity_{_NUMBER}": ("did not move, |Δ| ≤ {0}", "unmoved, |Δ| ≤ {0}", MOVED, True),
    "update_norm": ("length of the update ‖Δ‖", "‖Δ‖", MOVED, False),
    "relative_norm": ("relative norm ‖Δ‖/‖θ₀‖", "relative norm", MOVED, False),
    "energy_share": ("share of the whole update's energy", "energy share", CONCENTRATION, True),
    rf"top_energy_{_NUMBER}": (
        "energy in the {0:%} of weights that moved most",
        "energy in top {0:%} weights",
        CONCENTRATION,
        True,
    ),
    rf"coverage_{_MASK}": (
        "of the weights that moved (|Δ| > {2}), those in the {0} {1:%}",
        "of the moved, in {0} {1:%}",
        PLACES,
        True,
    ),
    rf"enrichment_{_MASK}": (
        "enrichment of weights that moved (|Δ| > {2}) in the {0} {1:%}",
        "enrichment, {0} {1:%}",
        PLACES,
        False,
    ),
    rf"rank_{_NUMBER}": ("rank, σ > {0}·σ₁, of the smaller side", "rank at {0}·σ₁", SHAPE, True),
    "stable_rank": ("stable rank", "stable rank", SHAPE, False),
    "entropy_rank": ("entropy rank", "entropy rank", SHAPE, False),
    rf"spectral_energy_{_NUMBER}": ("energy in the top {0} directions", "energy in top {0} directions", SHAPE, True),
    rf"projection_joint_{_NUMBER}": (
        "energy inside the source's top {0:%} directions on both sides",
        "in source's top {0:%}, both sides",
        SOURCE,
        True,
    ),
    rf"projection_left_{_NUMBER}": (
        "energy inside the source's top {0:%} output directions",
        "in source's top {0:%}, output",
        SOURCE,
        True,
    ),
    rf"projection_right_{_NUMBER}": (
        "energy inside the source's top {0:%} input directions",
        "in source's top {0:%}, input",
        SOURCE,
        True,
    ),
    rf"rotation_left_{_NUMBER}": ("rotation of the top {0:%} output directions", "rotation, output", SOURCE, False),
    rf"rotation_right_{_NUMBER}": ("rotation of the top {0:%} input directions", "rotation, input", SOURCE, False),
    "spectral_drift": ("spectral drift ‖σ(W′)−σ(W)‖/‖σ(W)‖", "spectral drift", SOURCE, False),
    "spectral_drift_per_update": ("spectral drift per length of the update", "drift per ‖Δ‖", SOURCE, False),
    rf"overlap_of_trained_{_NUMBER}": (
        "of what moved here (|Δ| > {0}), what moved in the other run too",
        "of moved here, in both",
        RUNS,
        True,
    ),
    rf"overlap_of_other_{_NUMBER}": (
        "of what moved in the other run (|Δ| > {0}), what moved here too",
        "of moved there, in both",
        RUNS,
        True,
    ),
    rf"jaccard_{_NUMBER}": ("Jaccard index of what moved, |Δ| > {0}", "Jaccard, |Δ| > {0}", RUNS, True),
    rf"observed_over_expected_{_NUMBER}": (
        "moved in both runs (|Δ| > {0}), over what chance gives",
        "moved in both over chance",
        RUNS,
        False,
    ),
}
"""Pattern of a metric's name → name and short name in words, family, whether it is a share. ``{1:%}`` is a part of the
name as a percentage."""


def quantity(key: str) -> Quantity | None:
    """What a metric's name says, None for one that is not known here.

    >>> quantity("stable_rank.median").name
    'stable rank (median)'
    """
    base, over = _split(key)
    for pattern, (name, short, family, share) in _PATTERNS.items():
        found = re.fullmatch(pattern, base)
        if found:
            full = _worded(name, found.groups())
            return Quantity(key, f"{full} ({over})" if over else full, _worded(short, found.groups()), family, share)
    return None


def present(names: Container[str], key: str) -> str | None:
    """The name under which a metric is there: its own or, of what is measured per matrix, its median's."""
    return next((name for name in (key, f"{key}.median") if name in names), None)


def _split(key: str) -> tuple[str, str]:
    for over in ("median", "mean"):
        if key.endswith(f".{over}"):
            return key.removesuffix(f".{over}"), over
    return key, ""


def _worded(words: str, groups: tuple[str, ...]) -> str:
    for index, group in enumerate(groups):
        words = words.replace(f"{{{index}}}", _PLACE.get(group, group))
        if f"{{{index}:%}}" in words:
            words = words.replace(f"{{{index}:%}}", f"{100 * float(group):g} %")
    return words
