"""``distill label out=DIR``: the teacher answers the prompts of the data, or writes new rows like them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill import __version__, data, distributed, models, parts
from distill.commands.countdown import countdown
from distill.config.schema_label import FREE
from distill.data.base import Dataset
from distill.data.encode import Encoder
from distill.errors import RunError, UserError
from distill.labelling import origin
from distill.labelling.given import Given
from distill.labelling.sieve import Join, Sieve, known_prompts, sums_of
from distill.labelling.synthetic import Form, Synthetic
from distill.models import CausalLM
from distill.quiet import quiet_libraries
from distill.rollouts.decode import Sampling

ROWS, HELD_OUT = "rows.jsonl", "held_out.jsonl"


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Makes what is missing of ``out`` (keys: ``config.schema_label``): rows, held-out rows and the manifest. Ranks do
    not wait for each other: whoever finds all parts there joins them.

    Raises:
        UserError: ``out`` was begun with other settings, or the teacher or the data cannot be used.
        RunError: the teacher's logits are not finite, or too few of its rows can be kept.
    """
    quiet_libraries()
    out, where = Path(config["out"]), origin.device(config["accelerator"])
    teacher = models.build(config["teacher"], seed=config["seed"], key="teacher")
    synthetic, limit = config["label"]["prompts"] == "synthetic", teacher.max_positions
    train, held_out = data.build(
        config["data"], teacher.tokenizer, seed=config["seed"], max_positions=limit, completions=synthetic
    )
    made_from = origin.made_from({"teacher": teacher}, train, held_out, where)
    parts.begin(out, {"command": "label", **origin.settings(config, FREE)}, made_from)
    origin.place(teacher, where)
    writer = _synthetic(config, teacher, train, held_out) if synthetic else _given(config, teacher, train)
    known = known_prompts(train, held_out) if synthetic else None
    found = Join(out, writer.parts, Sieve(known, config["label"]["rows"]))
    with countdown("label", len(parts.missing(out, writer.parts)) * writer.rows or 1) as advance:
        parts.produce(out, writer.parts, _counted(writer.make, advance), found.enough)
    if not found.enough():
        print(f"rank {distributed.rank()} has done its share of {out}; others are still to come")
        return 0
    _refuse_too_few(found.sieve, config["label"])
    # What has been counted so far is read once more for what is kept, which need not fit into memory.
    joining = Join(out, writer.parts, Sieve(known, config["label"]["rows"]))
    files = {ROWS: _lines(joining.rows()), HELD_OUT: _lines(map(held_out.row, range(len(held_out))))}
    told = describe(config, made_from, train, found.sieve, _verifier(config["label"], train, held_out))
    parts.finish(out, files, told)
    print(f"{found.sieve.kept:,} of {found.sieve.drawn:,} rows kept{_reasons(found.sieve)}")
    print(f"train with data=text data.path={out / ROWS} data.eval_path={out / HELD_OUT}")
    return 0


def describe(
    config: dict[str, Any], made_from: dict[str, str | None], train: Dataset, sieve: Sieve, verifier: str
) -> dict[str, Any]:
    """The manifest: where the rows are from, and what became of those that are not there."""
    return {
        "command": "label",
        "version": __version__,
        "config": {name: part for name, part in config.items() if name != "out"},
        "made_from": made_from,
        "data": train.describe(),
        "verifier": verifier,
        "drawn": sieve.drawn,
        "rows": sieve.kept,
        "dropped": dict(sorted(sieve.dropped.items())),
        **{name: sieve.counts[name] for name in ("verified", "exact", "tokens_sampled")},
    }


def _given(config: dict[str, Any], teacher: CausalLM, train: Dataset) -> Given:
    label, size = config["label"], config["sampling"]["batch_size"]
    verify = label["verify"] and train.has_verifier
    copies, reader = label["samples_per_prompt"], _reader(config, teacher)
    return Given(teacher, train, reader, _sampling(config), config["seed"], size, copies, verify)


def _reader(config: dict[str, Any], teacher: CausalLM) -> Encoder:
    """Reads rows as training will, on a model of the teacher's context: they are complete as they are."""
    longest = config["data"]["max_length"]
    return Encoder(teacher.tokenizer, min(longest, teacher.max_positions or longest))


def _synthetic(config: dict[str, Any], teacher: CausalLM, train: Dataset, held_out: Dataset) -> Synthetic:
    label = config["label"]
    if label["examples"] > len(train):
        allowed = f"at most {len(train)}, the number of training rows"
        raise UserError("label.examples", label["examples"], allowed)
    system = config["data"]["system_prompt"]
    reader = replace(_reader(config, teacher), chat_template="messages" in train.row(0), system_prompt=system)
    return Synthetic(
        teacher,
        train,
        reader,
        sums_of(held_out),
        _sampling(config),
        config["seed"],
        rows=config["sampling"]["batch_size"],
        draws=label["rows"] * label["attempts"],
        examples=label["examples"],
        form=Form.of(label["example"]),
        instruction=label["instruction"],
        verify=label["verify"],
    )


def _sampling(config: dict[str, Any]) -> Sampling:
    options = config["sampling"]
    return Sampling(options["temperature"], options["top_p"], options["top_k"], options["max_new_tokens"])


def _counted(make: Callable[[int], parts.Rows], advance: Callable[[float], None]) -> Callable[[int], parts.Rows]:
    def counted(number: int) -> parts.Rows:
        records = make(number)
        advance(len(records))
        return records

    return counted


def _verifier(label: dict[str, Any], train: Dataset, held_out: Dataset) -> str:
    if not label["verify"]:
        return "none: label.verify is false"
    if label["prompts"] == "given":
        return train.name if train.has_verifier else "none: the data have no answers to check against"
    if sums_of(held_out):
        return "arithmetic, where the new prompt is in the form of data.prompt"
    return "none: nobody knows the answers to new prompts"


def _refuse_too_few(sieve: Sieve, label: dict[str, Any]) -> None:
    """Raises RunError where nothing is left, or less than was asked for."""
    if sieve.kept == 0:
        raise RunError(f"none of {sieve.drawn:,} rows can be kept{_reasons(sieve)}.")
    if sieve.wanted is not None and not sieve.full:
        how = "With more label.attempts or fewer label.rows the command goes on from here."
        raise RunError(f"{sieve.kept:,} of {sieve.wanted:,} rows after {sieve.drawn:,} draws{_reasons(sieve)}. {how}")


def _reasons(sieve: Sieve) -> str:
    listed = ", ".join(f"{count:,} {reason}" for reason, count in sieve.dropped.most_common())
    return f" (dropped: {listed})" if listed else ""


def _lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) for row in rows)
