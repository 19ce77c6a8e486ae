"""Real input through whole runs: rows and conversations from files, and procedural tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from distill.commands import eval as evaluation
from distill.commands.train import run
from distill.config.schema import EvalConfig
from tests import tiny
from tests.unit.data.conftest import build_byte_tokenizer

PLAIN = [{"prompt": f"Say {i}.", "completion": f" {i}", "answer": str(i)} for i in range(30)]
CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"Is it {i}?"},
            {"role": "assistant", "content": "No"},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": f"Yes, {i}"},
        ]
    }
    for i in range(30)
]
ROWS = {"plain": PLAIN, "chats": CHATS}


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    build_byte_tokenizer("chatml").save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def settings(recipe: str, tokenizer: str, **changes: Any) -> dict[str, Any]:
    long = {"max_position_embeddings": 512}
    options = {"student__config": tiny.llama(8) | long, "student__tokenizer": tokenizer, "data__eval_size": 4}
    kind, members = (tiny.RECIPES[recipe]["teacher"].get(key, {}) for key in ("kind", "members"))
    asked = ["teacher"] if kind in ("frozen", "cotrained") else [f"teacher__members__{name}" for name in members]
    for model in asked:
        options |= {f"{model}__config": tiny.llama(16) | long, f"{model}__tokenizer": tokenizer}
    if kind == "self":
        options["teacher__prompt"] = "{prompt} Think."
    return tiny.config(recipe, **options, trainer__max_steps=2, callbacks__checkpoint=None, **changes)


def samples(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_rows_from_a_file(recipe: str, kind: str, suffix: str, tokenizer: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS[kind])))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS[kind]), path)
    config = settings(recipe, tokenizer, data__source="text", data__path=str(path))
    assert run(config, tmp_path / "run") == 0
    first = samples(tmp_path / "run")[0]
    # The last three of thirty rows are held out: the first of them is row 27.
    if kind == "plain":
        assert (first["prompt"], first["answer"], first["score"]) == ("Say 27.", " 27", 0.0)
    else:
        assert first["prompt"].endswith("No<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n")
        assert (first["answer"], first["score"]) == ("Yes, 27", None)
    assert f"path: {path}" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_targets_of_a_conversation_are_the_assistants_turns(tokenizer: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, CHATS)))
    config = settings("sft", tokenizer, data__source="text", data__path=str(path), data__batch_size=27)
    assert run(config, tmp_path / "run") == 0
    encode = AutoTokenizer.from_pretrained(tokenizer)
    turns = [f"{turn}<|im_end|>" for i in range(27) for turn in ("No", f"Yes, {i}")]
    expected = sum(len(encode(turn, add_special_tokens=False)["input_ids"]) for turn in turns)
    assert [r["positions"] for r in tiny.metrics(tmp_path / "run") if "loss" in r] == [expected] * 2


@pytest.mark.parametrize("recipe", ["opd", "sft"])
def test_a_reasoning_task(recipe: str, tokenizer: str, tmp_path: Path) -> None:
    task = {"data__source": "reasoning_gym", "data__task": "chain_sum", "data__size": 40}
    config = settings(recipe, tokenizer, data__options={"max_terms": 2}, **task)
    assert run(config, tmp_path / "run") == 0
    shown = samples(tmp_path / "run")
    assert len(shown) == 8
    assert all(sample["answer"].lstrip("-").isdigit() and sample["score"] == 0.0 for sample in shown)
    assert "task: chain_sum" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_finished_run_is_evaluated_on_its_own_data(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, PLAIN)))
    run_dir = tmp_path / "run"
    assert run(settings("opd", tokenizer, data__source="text", data__path=str(path)), run_dir) == 0
    capsys.readouterr()
    asked = EvalConfig(checkpoint=str(run_dir), out=str(tmp_path / "eval.json")).model_dump()
    assert evaluation.run(asked, tmp_path) == 0
    found = json.loads(capsys.readouterr().out)
    last = tiny.metrics(run_dir)[-1]
    assert found["examples"] == 3
    for key in ("eval/accuracy", "eval/reverse_kl", "eval/length"):
        assert found[key] == pytest.approx(last[key], rel=1e-5)
    written = json.loads((tmp_path / "eval.json").read_text())
    assert [sample["prompt"] for sample in written["samples"]] == ["Say 27.", "Say 28.", "Say 29."]
