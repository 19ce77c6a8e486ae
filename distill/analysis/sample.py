"""A few matrices that stand for all: drawn by seed, as evenly over the kinds of modules as their number allows."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from distill.analysis.naming import place
from distill.analysis.source import natural

LARGE = 256
"""Smaller side from which on a matrix belongs in a headline: spectra of smaller ones say little (docs/geometry.md)."""


def sampled(names: Iterable[str], count: int, seed: int) -> list[str]:
    """``count`` of the matrices inside decoder blocks, or all if there are no more; a function of its arguments.

    Kinds (``q_proj``, ``down_proj`` …) take turns, each with its matrices in an order drawn for it. Embeddings and
    heads are left out, being of another size and moved by other gradients; without any block all names may be drawn.
    """
    everything = sorted(names, key=natural)
    inside = [name for name in everything if place(name).layer is not None] or everything
    kinds: dict[str, list[str]] = {}
    for name in inside:
        kinds.setdefault(place(name).module, []).append(name)
    for kind, members in kinds.items():
        random.Random(f"{seed}/{kind}").shuffle(members)
    queue = [members.pop() for _ in inside for members in kinds.values() if members]
    return sorted(queue[:count], key=natural)


def headline(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The matrices whose smaller side is at least LARGE; all of them where there is none, as in tiny models."""
    return [name for name, shape in shapes.items() if min(shape) >= LARGE] or list(shapes)
