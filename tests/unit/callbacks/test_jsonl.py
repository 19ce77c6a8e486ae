"""The record of a run: appended at once, cut back to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from distill.callbacks.jsonl import FILE, JsonlLogger, truncate


def written(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_one_object_per_log_is_on_disk_at_once(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"time": 0.5, "loss": 1.0 / (step + 1)}, step)
        assert written(tmp_path)[-1] == {"step": step, "time": 0.5, "loss": 1.0 / (step + 1)}
    JsonlLogger(tmp_path).log_metrics({"loss": 0.1}, 3)
    assert [record["step"] for record in written(tmp_path)] == [0, 1, 2, 3]


def test_truncation_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path)
    for step in range(5):
        logger.log_metrics({"loss": 1.0}, step)
    file = tmp_path / FILE
    file.write_text(file.read_text() + '{"step": 2, "lo')
    truncate(file, 2)
    assert [record["step"] for record in written(tmp_path)] == [0, 1, 2]
    truncate(file, -1)
    assert file.read_text() == ""


def test_no_file_is_nothing_to_truncate(tmp_path: Path) -> None:
    truncate(tmp_path / FILE, 3)
    assert list(tmp_path.iterdir()) == []


def test_signs_that_only_look_like_the_end_of_a_line_stay(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    line = json.dumps({"step": 1, "completion": "a\u2028b\u0085c\x1cd\n"}, ensure_ascii=False) + "\n"
    file.write_text(line, encoding="utf-8")
    truncate(file, 1)
    assert file.read_text(encoding="utf-8") == line


def test_a_line_torn_within_a_character_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    whole, torn = '{"step": 1, "completion": "ä"}\n'.encode(), '{"step": 1, "completion": "ä'.encode()[:-1]
    file.write_bytes(whole + torn)
    truncate(file, 1)
    assert file.read_bytes() == whole
