"""The same numbers in every log, offline, and no secret in any file."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from wandb.proto import wandb_internal_pb2

from distill.callbacks.sparsity_record import COLUMNS
from distill.commands.train import run
from tests import tiny

SECRET = "hf_" + "Zq7" * 12
BLOCK, HEADER = 32768, 7
MODEL = "model.safetensors"


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


def medium(items: dict[str, Any], key: str) -> dict[str, Any]:
    """What W&B keeps of a picture, a histogram or a table: its parts are items of their own."""
    prefix = f"sparsity_media/{key}/"
    return {name.removeprefix(prefix): value for name, value in items.items() if name.startswith(prefix)}


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


def test_wandb_offline_holds_the_media_of_each_measurement(logged: Path) -> None:
    (file,) = logged.glob("wandb/*run-*/*.wandb")
    seen, measured = history(file), [int(r["step"]) for r in tiny.metrics(logged) if "sparsity/bf16/0" in r]
    assert measured == [3, 6]
    for step in measured:
        for key in ("layers_and_modules", "minus_null"):
            picture = medium(seen[step], key)
            assert [(file.parent / "files" / name).exists() for name in picture["filenames"]] == [True]
        for precision in ("bf16", "fp32"):
            found = medium(seen[step], f"log10_update/{precision}")
            assert found["_type"] == "histogram"
            assert 0 < sum(found["values"]) <= sum(t.numel() for t in load_file(logged / "model" / MODEL).values())
        table = file.parent / "files" / medium(seen[step], "table")["path"]
        content = json.loads(table.read_text())
        assert content["columns"] == list(COLUMNS)
        (whole,) = [row for row in content["data"] if row[:3] == ["model", "all", "bf16"]]
        assert whole[content["columns"].index("null_sparsity_1e-5")] == seen[step]["sparsity_null/bf16/1e-5"]


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
