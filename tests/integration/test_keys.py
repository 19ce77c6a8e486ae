"""Every key of a run's record is documented, and every documented key is recorded by some run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distill import module, mutual
from distill.callbacks import (
    collapse,
    confine,
    evaluation,
    extrapolation,
    geometry,
    gradient_variance,
    metrics,
    moments,
    sparsity,
    update_mask,
)
from distill.commands.train import run
from distill.objective import Objective
from tests import masks, tiny

ORIGIN = tuple(f"{sparsity.ORIGIN}{key}" for key in sparsity.KEYS if "since_last/" not in key and "time/" not in key)
OPTIONAL = (
    *ORIGIN,
    *geometry.KEYS,
    *extrapolation.KEYS,
    *gradient_variance.KEYS,
    *update_mask.KEYS,
    *mutual.KEYS,
    *collapse.KEYS,
    *sparsity.COTRAINED,
    *(key for key in confine.KEYS if "microbatch" not in key),
)
DOCUMENTED = (*module.KEYS, *metrics.KEYS, *evaluation.KEYS, *sparsity.KEYS, *moments.KEYS, *OPTIONAL, "step", "time")
PADDED = {**tiny.llama(8), "vocab_size": 32}
RUNS = {
    "opd": {
        "student__config": PADDED,
        "trainer__micro_batch_size": 5,
        "callbacks__extrapolation": {"candidates": 1, "examples": 2},
    },
    "sft": {
        "callbacks__optimizer_state": {"every_n_steps": 1},
        "callbacks__geometry": {"every_n_steps": 1},
        "callbacks__gradient_subspace": {"warmup_steps": 1, "every_n_steps": 1},
    },
    "online_kd": tiny.SWITCHED | {"teacher": {**tiny.SWITCHED["teacher"], "lora": {"r": 2}}},
    "offline_kd": {
        "objective__temperature": {"start": 2, "end": 1},
        "callbacks__gradient_variance": {"blocks": 3},
    },
}


def pattern(key: str) -> str:
    return re.sub("[A-Z]{3,}", "[^/]+", key.replace(".", r"\.") if "LAYER.MODULE" in key else key)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    keys, folders = set[str](), dict[str, Path]()
    for recipe, changes in RUNS.items():
        folder = folders[recipe] = tmp_path_factory.mktemp(recipe)
        config = tiny.config(recipe, trainer__max_steps=2, **changes)
        if recipe == "offline_kd":
            path = masks.write(folder / "mask", config, 0.2)
            config["callbacks"]["update_mask"] = {"path": str(path)}
            config["callbacks"]["sparsity"]["origin"] = str(folders["sft"] / "source")
        assert run(config, folder) == 0
        keys |= {key for record in tiny.metrics(folder) for key in record}
    folder = tmp_path_factory.mktemp("images")
    assert run(tiny.config("offline_kd", **tiny.PICTURED["offline_kd"], trainer__max_steps=1), folder) == 0
    keys |= {key for record in tiny.metrics(folder) for key in record}
    folder = tmp_path_factory.mktemp("masks")
    assert run(tiny.config("offline_kd", **tiny.MASKS, trainer__max_steps=1), folder) == 0
    return keys | {key for record in tiny.metrics(folder) for key in record}


def test_every_recorded_key_is_documented(recorded: set[str]) -> None:
    documented = [pattern(key) for key in DOCUMENTED]
    objective = Objective.__call__.__doc__ or ""
    for key in recorded:
        named = f"``{key}``" in objective or key in ("reverse_kl", "forward_kl")
        assert named or any(re.fullmatch(known, key) for known in documented), key


@pytest.mark.parametrize("key", DOCUMENTED)
def test_every_documented_key_is_recorded(key: str, recorded: set[str]) -> None:
    assert any(re.fullmatch(pattern(key), found) for found in recorded)
