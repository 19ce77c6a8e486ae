"""Gradient variances on two gloo ranks are those of one process, and training does not notice that they are taken.

Blocks have three rows of different length, so that ranks have unequal parts of them, in micro-batches of one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.commands.train import run
from tests import masks, tiny
from tests.distributed.parity import STRATEGIES
from tests.distributed.test_parity import BY_LAYER
from tests.distributed.worker import launch

pytestmark = pytest.mark.timeout(600)
MEASURED = {"every_n_steps": 2, "blocks": 4, "sketch": 997, "horizon": 3.0}
UNTIED = {"student__config": tiny.llama(16, tied=False)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("offline_kd", changes) for name, changes in STRATEGIES.items()},
    "by layer": ("offline_kd", BY_LAYER),
    "by layer, recomputed": ("offline_kd", {**BY_LAYER, **UNTIED, "student__gradient_checkpointing": True}),
    "by layer, LoRA": ("offline_kd", {**BY_LAYER, "student__lora": {"r": 2}}),
    "sharded teacher": ("offline_kd", {"trainer__strategy": "zero2", "teacher__placement": "sharded"}),
    "both sharded": ("opd", {**BY_LAYER, "teacher__placement": "sharded"}),
    "own teacher": ("self_distillation", STRATEGIES["zero3"]),
    "own teacher by layer": ("self_distillation", BY_LAYER),
    "many teachers": ("multi_teacher", STRATEGIES["ddp"]),
    "masked": ("offline_kd", STRATEGIES["zero2"]),
    **{
        f"images, {name}": ("offline_kd", {**tiny.PICTURED["offline_kd"], **changes})
        for name, changes in {**STRATEGIES, "by layer": BY_LAYER}.items()
        if name in ("ddp", "zero2", "zero3", "by layer")
    },
}
ON_ONE = ("student__lora", "student__config", "student__gradient_checkpointing", *tiny.IMAGES, "teacher")
"""Changes that the process of reference makes, too."""
WITHOUT = ("ddp", "zero1", "zero2", "zero3", "by layer", "both sharded", "own teacher by layer", "images, zero3")
"""Cases that are also trained without the callback."""


class Runs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mask = masks.write(folder / "mask", tiny.config("offline_kd"), 0.3)

    def settings(self, case: str, **changes: Any) -> dict[str, Any]:
        recipe, _ = CASES[case]
        common = {
            "data__batch_size": 12 if recipe != "opd" and recipe != "self_distillation" else 24,
            "optimizer__lr": 1e-3,
            "trainer__max_steps": 2,
            "callbacks": {"sparsity": None, "evaluation": None, "checkpoint": None, "gradient_variance": MEASURED},
        }
        if case == "masked":
            common["callbacks"] = {**common["callbacks"], "update_mask": {"path": str(self.mask)}}
        return tiny.config(recipe, **common | changes)

    def alone(self, case: str) -> Path:
        kept = {key: value for key, value in CASES[case][1].items() if key in ON_ONE}
        what = json.dumps([CASES[case][0], case == "masked", kept])
        path = self.folder / f"alone {abs(hash(what))}"
        if not path.exists():
            assert run(self.settings(case, **kept), path) == 0
        return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    torch.set_num_threads(1)
    found = Runs(tmp_path_factory.mktemp("variance"))
    together = []
    for case, (_, changes) in CASES.items():
        config = found.settings(case, trainer__micro_batch_size=1, **changes)
        together.append((config, str(found.folder / case)))
        if case in WITHOUT:
            plain = {**config, "callbacks": {**config["callbacks"], "gradient_variance": None}}
            together.append((plain, str(found.folder / f"{case} without")))
    launch(together, found.folder)
    return found


def measured(run_dir: Path) -> dict[int, dict[str, float]]:
    records = {int(record["step"]): record for record in tiny.metrics(run_dir)}
    prefix = "gradient_variance/"
    return {
        step: found for step, r in records.items() if (found := {k: v for k, v in r.items() if k.startswith(prefix)})
    }


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_measure_what_one_process_measures(case: str, runs: Runs) -> None:
    together, alone = measured(runs.folder / case), measured(runs.alone(case))
    assert list(together) == list(alone) == [0, 2]
    for step, expected in alone.items():
        assert set(together[step]) == set(expected)
        assert expected["gradient_variance/ce"] > 0
        assert 0 < expected["gradient_variance/lambda"] < 1
        for key, value in expected.items():
            # The weights themselves agree within rounding only, once steps have been taken.
            assert together[step][key] == pytest.approx(value, rel=2e-5 if step == 0 else 1e-3, abs=1e-6), (step, key)


@pytest.mark.parametrize("case", WITHOUT)
def test_training_keeps_its_bits(case: str, runs: Runs) -> None:
    ours, expected = (load_file(runs.folder / name / "model/model.safetensors") for name in (case, f"{case} without"))
    assert list(ours) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name
    losses = [[r.get("loss") for r in tiny.metrics(runs.folder / name)] for name in (case, f"{case} without")]
    assert [loss for loss in losses[0] if loss] == [loss for loss in losses[1] if loss]
