"""``distill select out=DIR``: the rows of the data that a teacher knows better than a reference model does."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill import __version__, data, distributed, models, parts
from distill.commands.countdown import countdown
from distill.config.schema_select import FREE
from distill.data.base import Dataset
from distill.errors import UserError
from distill.labelling import origin
from distill.labelling.difference import Difference, best
from distill.models import CausalLM, tokenizers
from distill.quiet import quiet_libraries

log = logging.getLogger(__name__)

ROWS, HELD_OUT, SCORES = "rows.jsonl", "held_out.jsonl", "scores.jsonl"


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Makes what is missing of ``out`` (keys: ``config.schema_select``): the rows kept, in their order, held-out rows,
    all scores and the manifest. Ranks do not wait for each other: whoever finds all parts there joins them.

    Raises:
        UserError: ``out`` was begun with other settings; models or data cannot be used, or not together.
        RunError: a loss is not finite.
    """
    quiet_libraries()
    out, where = Path(config["out"]), origin.device(config["accelerator"])
    teacher, reference = _models(config)
    limits = [lm.max_positions for lm in (teacher, reference) if lm.max_positions is not None]
    train, held_out = data.build(
        config["data"],
        teacher.tokenizer,
        seed=config["seed"],
        max_positions=min(limits, default=None),
        completions=True,
    )
    made_from = origin.made_from({"teacher": teacher, "reference": reference}, train, held_out, where)
    if made_from["teacher weights"] == made_from["reference weights"]:
        allowed = "a model of other weights than the teacher's: all scores would be 0"
        raise UserError("reference.path", config["reference"]["path"], allowed)
    parts.begin(out, {"command": "select", **origin.settings(config, FREE)}, made_from)
    for lm in (teacher, reference):
        origin.place(lm, where)
    writer = Difference(teacher, reference, train, config["part_rows"], config["batch_size"])
    left = len(parts.missing(out, writer.parts)) * writer.rows
    with countdown("select", left or 1) as advance:
        parts.produce(out, writer.parts, lambda number: writer.make(number, advance))
    if not all(parts.path(out, number).exists() for number in range(writer.parts)):
        print(f"rank {distributed.rank()} has done its share of {out}; others are still to come")
        return 0
    _join(config, made_from, train, held_out, list(_scores(out, writer.parts)))
    return 0


def _models(config: dict[str, Any]) -> tuple[CausalLM, CausalLM]:
    """Teacher and reference, which have the same tokens."""
    teacher = models.build(config["teacher"], seed=config["seed"], key="teacher")
    reference = models.build(config["reference"], seed=config["seed"], key="reference")
    tokenizers.check_same(reference.tokenizer, teacher.tokenizer, student_name="reference model")
    return teacher, reference


def _scores(out: Path, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        rows = parts.read(out, number)
        assert rows is not None
        yield from rows


def _join(
    config: dict[str, Any],
    made_from: dict[str, str | None],
    train: Dataset,
    held_out: Dataset,
    scores: list[dict[str, Any]],
) -> None:
    out, kept = Path(config["out"]), best([row["score"] for row in scores], config["keep"])
    chosen = (
        {**train.row(place), "id": scores[place]["id"], "score": scores[place]["score"]} for place in sorted(kept)
    )
    files = {
        SCORES: _lines(row | {"kept": place in kept} for place, row in enumerate(scores)),
        ROWS: _lines(chosen),
        HELD_OUT: _lines(map(held_out.row, range(len(held_out)))),
    }
    chosen_scores = [scores[place]["score"] for place in kept]
    lowest, mean = min(chosen_scores), math.fsum(chosen_scores) / len(kept)
    manifest = {
        "command": "select",
        "version": __version__,
        "config": {name: part for name, part in config.items() if name != "out"},
        "made_from": made_from,
        "data": train.describe(),
        "scored": len(scores),
        "rows": len(kept),
        "lowest_score_kept": lowest,
        "mean_score_kept": mean,
        "mean_score": sum(row["score"] for row in scores) / len(scores),
    }
    parts.finish(out, files, manifest)
    print(
        f"{len(kept):,} of {len(scores):,} rows kept, with {lowest:.4g} nats per token or more between the two losses"
    )
    if mean <= 0:
        said = "the teacher knows them no better than the reference"
        log.warning("the rows kept have a mean score of %.4g nats per token: %s", mean, said)
    print(f"train with data=text data.path={out / ROWS} data.eval_path={out / HELD_OUT}")


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) for row in rows)
