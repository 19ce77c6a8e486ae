"""A run directory as a finished run leaves it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

LABELS = ("0", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4")


def records(steps: int = 4, norm: float = 9e-4) -> list[dict[str, Any]]:
    start = {"step": 0, "time": 0.0, "eval/accuracy": 0.031, "eval/teacher_accuracy": 0.97, "eval/reverse_kl": 1.5}
    rows: list[dict[str, Any]] = [start]
    for step in range(1, steps + 1):
        loss = 2.0 / step
        rows.append(
            {"step": step, "time": 35.0 * step, "loss": loss, "reverse_kl": loss, "ce": 3.0, "tokens": 100 * step}
        )
    rows[-1] |= {"eval/accuracy": 0.882, "eval/reverse_kl": 0.05, "time/sparsity": 0.5}
    rows[-1] |= {"update/relative_norm": 1.9 * norm, "update/relative_norm_fp32": norm}
    for index, label in enumerate(LABELS):
        rows[-1] |= {f"sparsity/bf16/{label}": 0.7 + 0.02 * index, f"sparsity/fp32/{label}": 0.01 * index}
    for group in ("mlp", "attention"):
        rows[-1] |= {f"{key}/group/{group}": 0.5 for key in ("sparsity", "update/energy", "update/relative_norm")}
    for layer in range(12):
        rows[-1] |= {f"sparsity/module/{layer}.q_proj": 0.5 + layer / 100, f"sparsity/module/{layer}.mlp.c_proj": 0.9}
    return rows


def write_run(path: Path, metrics: list[dict[str, Any]], planned: int = 4) -> Path:
    path.mkdir(parents=True)
    config = {"seed": 7, "trainer": {"max_steps": planned}, "objective": {"divergence": "reverse_kl"}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "environment.json").write_text(json.dumps({"python": "3.11.7"}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    samples = [
        {"step": step, "prompt": f"{step}+1=", "completion": "<b>2</b>", "answer": "2", "score": float(step > 0)}
        for step in (0, 2, 4)
    ]
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return path


@pytest.fixture(autouse=True)
def _pictures(pictures: None) -> None:
    """What is tested here is what a user sees."""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "opd", records())
