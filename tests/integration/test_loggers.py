"""The same numbers in every log, offline, and no secret in any file."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from distill.commands.train import run
from tests import tiny

SECRET = "hf_" + "Zq7" * 12
BLOCK, HEADER = 32768, 7


def records(path: Path) -> list[Any]:
    """The records of a ``.wandb`` file: LevelDB's log framing after a seven-byte header."""
    content, position, parts, found = path.read_bytes(), HEADER, [], []
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        parts.append(content[position + HEADER : position + HEADER + length])
        position += HEADER + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            found.append(record)
            parts = []
    return found


def history(path: Path) -> dict[int, dict[str, Any]]:
    steps: dict[int, dict[str, Any]] = {}
    for record in records(path):
        if record.HasField("history"):
            items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            steps.setdefault(int(items["trainer/global_step"]), {}).update(items)
    return steps


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    options = {"logger__wandb": "offline", "logger__tensorboard": True, "logger__csv": True, "logger__tags": [SECRET]}
    assert run(tiny.config("opd", **options), tmp_path) == 0
    return tmp_path


def test_wandb_offline_holds_what_the_jsonl_holds(logged: Path) -> None:
    (file,) = logged.glob("wandb/*run-*/*.wandb")
    seen = history(file)
    for record in tiny.metrics(logged):
        for key, value in record.items():
            if key != "step":
                assert seen[int(record["step"])][key] == pytest.approx(value), key
    assert any(key.startswith("samples/") for items in seen.values() for key in items)


def test_csv_and_tensorboard_are_written(logged: Path) -> None:
    rows = list(csv.DictReader((logged / "csv" / "metrics.csv").open()))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert losses == pytest.approx([r["loss"] for r in tiny.metrics(logged) if "loss" in r])
    assert list((logged / "tensorboard").glob("events.out.tfevents.*"))


def test_no_secret_in_any_file(logged: Path) -> None:
    files = [path for path in logged.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
