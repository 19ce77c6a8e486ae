"""``distill mask source=PATH trained=PATH out=FILE``: the coordinates an update touched, or a control, as a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from distill import __version__
from distill.analysis import masks as rules
from distill.analysis.masks import Overlap
from distill.analysis.naming import GROUPS, place
from distill.commands.mask_inputs import Inputs, opened
from distill.config.schema_mask import USES
from distill.errors import UserError
from distill.maskfile import SHORT, Packed, Provenance, pack, write

COLUMNS = ("coordinates", "in mask", "density", "of like", "by chance", "ratio")
"""Of each group of tensors. The last three compare with ``like``: the share of its coordinates that are in the mask,
the share expected of unrelated masks with as many coordinates in each tensor, and the first over the second."""

Masks = Iterable[tuple[str, Tensor]]


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Makes the mask of ``config`` (keys: ``config.schema_mask``), writes it to ``out`` and shows its densities.

    Raises:
        UserError: an input cannot be read or does not fit the others, weights are not finite, or the mask is empty.
    """
    out = Path(config["out"])
    with ExitStack() as files:
        inputs = opened(config, files)
        made = dict[str, Packed]()
        overlaps = dict[str, Overlap]()
        for name, mask in _masks(config, inputs):
            made[name] = pack(mask)
            overlaps[name] = rules.overlap(mask, inputs.like.mask(name) if inputs.like else mask)
        provenance = _provenance(config, inputs)
    _refuse_empty(config, made)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, made, provenance)
    _show(overlaps, inputs.like is not None)
    print(f"written to {out}, for the weights {provenance.source[:SHORT]}")
    return 0


def _masks(config: Mapping[str, Any], inputs: Inputs) -> Masks:
    rule, scope, density = config["rule"], config["scope"], config["density"]
    if rule == "updated":
        return _updated(config, inputs)
    if rule in ("union", "intersection"):
        return _combined(inputs, or_ if rule == "union" else and_)
    scores = _scores(config, inputs)
    if inputs.like is not None:
        counts = {name: inputs.like.count(name) for name in inputs.shapes}
    else:
        counts = {name: rules.count(density, math.prod(shape)) for name, shape in inputs.shapes.items()}
    if scope == "tensor":
        return rules.select(scores, counts)
    whole = sum(math.prod(shape) for shape in inputs.shapes.values())
    wanted = rules.count(density, whole) if inputs.like is None else sum(counts.values())
    return rules.select_globally(scores, inputs.shapes, wanted)


def _updated(config: Mapping[str, Any], inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    assert inputs.source is not None
    assert inputs.trained is not None
    for name in inputs.shapes:
        before, after = inputs.source.tensor(name), inputs.trained.tensor(name)
        yield name, rules.updated(before, after, config["tolerance"], config["precision"])


def _combined(inputs: Inputs, operation: Callable[[Tensor, Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name in inputs.shapes:
        yield name, reduce(operation, (mask.mask(name) for mask in inputs.masks))


def _scores(config: Mapping[str, Any], inputs: Inputs) -> rules.Scores:
    """The scores of each control; the principal parts are kept where a selection asks for them more than once."""
    seed, shapes = config["seed"], inputs.shapes

    def weights(name: str) -> Tensor:
        assert inputs.source is not None
        return inputs.source.tensor(name)

    def part(name: str) -> tuple[Tensor, Tensor]:
        return rules.principal_part(weights(name))

    def null(name: str) -> Tensor:
        assert inputs.trained is not None
        after = inputs.trained.tensor(name)
        return rules.rounding_null(name, weights(name), after, seed, config["tolerance"], config["precision"])

    def random(name: str) -> Tensor:
        return rules.random(name, shapes[name], seed)

    kept = cache(part) if config["scope"] == "global" else part
    controls: dict[str, rules.Scores] = {
        "random": random,
        "low": lambda name: rules.low(weights(name)),
        "principal": lambda name: rules.principal(kept(name), shapes[name]),
        "rounding_null": null,
        "match": lambda name: rules.preferred(inputs.masks[0].mask(name), random(name)),
    }
    return controls[config["rule"]]


def _provenance(config: Mapping[str, Any], inputs: Inputs) -> Provenance:
    used = {key: config[key] for key in ("tolerance", "precision", "scope", "seed") if key in USES[config["rule"]]}
    return Provenance(
        rule=config["rule"],
        source=inputs.made_for,
        version=__version__,
        trained=None if inputs.trained is None else inputs.trained.fingerprint,
        requested=config["density"],
        like=None if inputs.like is None else inputs.like.file.checksum,
        masks=tuple(mask.file.checksum for mask in inputs.masks),
        **used,
    )


def _refuse_empty(config: Mapping[str, Any], made: Mapping[str, Packed]) -> None:
    if any(packed.count for packed in made.values()):
        return
    key, what = "like", "a mask with a coordinate in it"
    if config["masks"]:
        key, what = "masks", "masks with a coordinate in common"
    elif config["rule"] == "updated":
        key, what = "trained", f"a checkpoint in which a coordinate moved by more than {config['tolerance']:g}"
    raise UserError(key, config[key], f"{what} (this mask is empty: under it, training would change nothing)")


def _show(overlaps: Mapping[str, Overlap], compared: bool) -> None:
    whole = sum(overlaps.values(), Overlap())
    table = Table("", title=f"{whole.first:,} of {whole.numel:,} coordinates are in the mask")
    for column in COLUMNS if compared else COLUMNS[:3]:
        table.add_column(column, justify="right")
    groups = {group: [part for name, part in overlaps.items() if place(name).group == group] for group in GROUPS}
    for group, parts in (*groups.items(), ("all", [whole])):
        if parts:
            table.add_row(group, *_cells(sum(parts, Overlap()))[: len(table.columns) - 1])
    console = Console()
    console.print(table)
    still = [name for name, part in overlaps.items() if part.numel and not part.first]
    if still:
        listed = ", ".join(still[:3]) + (", …" if len(still) > 3 else "")
        text = f"{len(still)} of {len(overlaps)} tensors have no coordinate in the mask: {listed}"
        console.print(text, highlight=False, markup=False)


def _cells(part: Overlap) -> list[str]:
    shares = ((part.first, part.numel), (part.both, part.second), (part.expected, part.second))
    ratio = f"{part.both / part.expected:.3f}" if part.expected else ""
    return [f"{part.numel:,}", f"{part.first:,}", *(f"{n / whole:.2%}" if whole else "" for n, whole in shares), ratio]
