"""The matrix recipe × strategy of images: two gloo processes end at the weights and numbers of one process.

Classes of images, and of pixels. Images are changed at random, and masks have different numbers of targets; no network
goes by batch statistics, which are those of a rank's own micro-batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import masks, tiny
from tests.distributed.parity import (
    SHARDED,
    STRATEGIES,
    Case,
    References,
    same_metrics,
    same_weights,
    settings,
)
from tests.distributed.worker import launch

# The first test waits for the launch that trains all cases.
pytestmark = pytest.mark.timeout(1200)
IMAGES, MASKS = "image_classification", "semantic_segmentation"
BY_LAYER = {"trainer__strategy": "zero3", "rollout__gather": "layers"}
TWO_STAGES = {"synthetic": {}, "annotated": {"data": {"limit": 30}}}
MASK = "callbacks__update_mask"
SECTIONS: dict[str, dict[str, Any]] = {
    IMAGES: tiny.IMAGES,
    MASKS: {
        **{key: part for key, part in tiny.MASKS.items() if key != "teacher"},
        # A bias of the keys shifts all scores alike: a gradient that is rounding must not become a step of Adam.
        "optimizer__eps": 1e-4,
        # One of many weights is always close enough to a rounding boundary to be counted differently.
        "callbacks__sparsity": None,
    },
}
TEACHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    IMAGES: (tiny.RESNET, tiny.CONVNEXT),
    MASKS: ({**tiny.SEGFORMER, "decoder_hidden_size": 24}, {**tiny.SEGFORMER, "decoder_hidden_size": 12}),
}
"""A frozen one, and one that has no batch statistics, or can be told to leave them."""


def recipes(task: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is trained of a task, as a recipe of ``tests.tiny`` and what it changes."""
    own, (frozen, learning) = SECTIONS[task], TEACHERS[task]
    taught = own | {"teacher": {"kind": "frozen", "config": frozen}}
    members = {"one": {"config": frozen, "weight": 2.0}, "other": {"config": learning}}
    together = own | {"teacher": {"kind": "cotrained", "config": learning}}
    staged = {"stages": TWO_STAGES}
    return {
        "sft": ("sft", own | {"teacher": {"kind": "none"}}),
        "offline_kd": ("offline_kd", taught),
        "multi_teacher, rollout=dataset": ("multi_teacher", own | {"teacher": {"kind": "multi", "members": members}}),
        "online_kd": ("online_kd", together),
        "online_adm": ("online_kd", together | {"adm": {"divergence": 0.5, "margin": -1.0}}),
        "two_stage": ("offline_kd", taught | staged),
        "subnetwork": ("sft", own | {"teacher": {"kind": "none"}, MASK: {"path": task}}),
    }


MATRIX = {
    (task, recipe, strategy): (of, "adamw", {**sections, **changes})
    for task in SECTIONS
    for recipe, (of, sections) in recipes(task).items()
    for strategy, changes in STRATEGIES.items()
}
MATRIX |= {
    (task, recipe, "sharded teacher"): (of, "adamw", {**sections, **SHARDED})
    for task in SECTIONS
    for recipe, (of, sections) in recipes(task).items()
    if recipe in ("offline_kd", "two_stage")
}
CASES: dict[str, Case] = {"-".join(key): case for key, case in MATRIX.items()}
"""What the table of docs/recipes.md is of, and what has a code path of its own."""
CASES["convolutions"] = ("sft", "adamw", {**tiny.PICTURED["sft"], **BY_LAYER, "student__config": tiny.CONVNEXT})
CASES["features"] = (
    "offline_kd",
    "adamw",
    {**tiny.PICTURED["offline_kd"], **STRATEGIES["ddp"], "adm": {"teacher_layer": "resnet.encoder.stages.0"}},
)
CASES["classes and maps of a sharded teacher"] = (
    "offline_kd",
    "adamw",
    {
        **tiny.PICTURED["offline_kd"],
        **STRATEGIES["zero2"],
        "teacher": {"kind": "frozen", "config": {**tiny.CONVNEXT, "hidden_sizes": [4, 8]}},
        "teacher__placement": "sharded",
        "adm": {"description": "classes"},
        "callbacks__feature_maps": {"every_n_steps": 3, "images": 1},
    },
)
CASES["online, by layer"] = ("online_kd", "adamw", {**tiny.PICTURED_ONLINE, **BY_LAYER})
ON_ONE = (
    *SECTIONS[IMAGES],
    *SECTIONS[MASKS],
    "teacher",
    "student__config",
    "adm",
    "stages",
    MASK,
)
"""Changes that the process of reference makes, too."""


class Runs:
    """Those of two ranks, from one launch, and those of one process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.alone = folder, References(folder / "one", ON_ONE)
        plain = {task: settings("sft", **recipes(task)["sft"][1]) for task in SECTIONS}
        self.masks = {task: masks.write(folder / task, config, 0.2) for task, config in plain.items()}
        launch(
            [
                (settings(*case[:2], trainer__micro_batch_size=4, **case[2]), folder / name)
                for name, case in ((name, self.case(name)) for name in CASES)
            ],
            folder,
        )

    def case(self, name: str) -> Case:
        """With the mask that it asks for."""
        recipe, optimizer, changes = CASES[name]
        if MASK in changes:
            changes = changes | {MASK: {"path": str(self.masks[changes[MASK]["path"]])}}
        return recipe, optimizer, changes

    def pair(self, name: str) -> tuple[Path, Path]:
        return self.folder / name, self.alone(self.case(name))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process(name: str, runs: Runs) -> None:
    same_weights(*runs.pair(name))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_log_what_one_process_logs(name: str, runs: Runs) -> None:
    staged = "stages" in CASES[name][2]
    same_metrics(*runs.pair(name), staged)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if MASK in case[2]])
def test_no_bit_outside_the_mask_changes(name: str, runs: Runs) -> None:
    path = runs.folder / name
    masks.check(runs.masks[CASES[name][2][MASK]["path"]], path / "source", path / "model")
