"""recipe=kd_variance in two processes equals one: the teacher's gradient, that of the whole data, and refreshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.commands.train import run
from tests import tiny
from tests.distributed.worker import launch

pytestmark = pytest.mark.timeout(300)
CASES: dict[str, dict[str, Any]] = {
    "refreshed": {"trainer__strategy": "ddp"},
    "biased": {"trainer__strategy": "ddp", "variance_reduction": {"weight": 0.7}},
}
"""Rows do not divide evenly: 6 a rank, in micro-batches of 4 and 2; the data has 1438 images."""


def settings(**changes: Any) -> dict[str, Any]:
    sections = {**tiny.REDUCED, "teacher": {"kind": "frozen", "config": {**tiny.SOFTMAX, "zero_init": True}}}
    return tiny.config("sft", **{**sections, "trainer__max_steps": 10, "callbacks__checkpoint": None, **changes})


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch(
        [(settings(trainer__micro_batch_size=4, **changes), str(folder / name)) for name, changes in CASES.items()],
        folder,
    )
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process(name: str, two_ranks: Path, tmp_path: Path) -> None:
    alone = {key: value for key, value in CASES[name].items() if key != "trainer__strategy"}
    assert run(settings(**alone), tmp_path / "one") == 0
    folders = tmp_path / "one" / "model", two_ranks / name / "model", tmp_path / "one" / "source"
    expected, found, start = (load_file(folder / "model.safetensors") for folder in folders)
    for key, value in expected.items():
        assert float((value - start[key]).abs().max()) > 0.01
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=lambda text, n=key: f"{n}: {text}")
    losses = [[record.get("ce") for record in tiny.metrics(folder.parent)] for folder in folders[:2]]
    assert losses[0][1:] == pytest.approx(losses[1][1:], rel=1e-5)
