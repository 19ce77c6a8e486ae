"""The matrix recipe × strategy: two gloo processes end at the weights, losses and sparsity of one process.

Of texts; ``test_parity_images`` is that of the other tasks. A recipe joins by being listed in ``tests.tiny.RECIPES``, a
strategy by a line in ``tests.distributed.parity``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.commands import cache
from distill.commands.train import run
from distill.config.schema_cache import CacheConfig
from tests import tiny
from tests.distributed.parity import STEPS, STRATEGIES, References, same_metrics, same_weights, settings, weights
from tests.distributed.worker import launch

# The first test waits for the launch that trains all cases.
pytestmark = pytest.mark.timeout(1200)
COMPILED = "compiled"
MAMBA = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
BY_LAYER = {"trainer__strategy": "zero3", "rollout__gather": "layers"}
EACH_ROWS_OWN = {
    "data__source": "text",
    "data__path": str(Path(__file__).with_name("domains.jsonl")),
    "teacher__by": "domain",
    "teacher__prompt": "{answer} {prompt}",
    "rollout__kind": "on_policy",
    "rollout__samples_per_prompt": 1,
}
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "rollout by layer": ("opd", BY_LAYER),
    "speculative rollout by layer": ("speculative_kd", BY_LAYER),
    "sharded teacher": ("opd", {"trainer__strategy": "zero2", "teacher__placement": "sharded"}),
    "sharded teacher and student": ("offline_kd", {"trainer__strategy": "zero3", "teacher__placement": "sharded"}),
    "offloaded teacher": ("opd", {**BY_LAYER, "teacher__placement": "offloaded"}),
    "gradient checkpointing": ("opd", {"trainer__strategy": "zero3", "student__gradient_checkpointing": True}),
    "LoRA": ("sft", {"trainer__strategy": "zero3", "student__lora": {"r": 2}}),
    "many chunks": ("offline_kd", {"trainer__strategy": "zero3", "objective__chunk_size": 3}),
    "LoRA on embeddings, by layer": (
        "opd",
        {**BY_LAYER, "student__lora": {"r": 2, "target_modules": ["q_proj", "embed_tokens"]}},
    ),
    "teacher without a cache, sharded": (
        "offline_kd",
        {"trainer__strategy": "zero2", "teacher__placement": "sharded", "teacher__config": MAMBA},
    ),
    "each row's own teacher, told the answer": ("multi_teacher", {"trainer__strategy": "zero3", **EACH_ROWS_OWN}),
    "its own teacher, by layer": ("self_distillation", {**BY_LAYER, "student__gradient_checkpointing": True}),
    "features": ("offline_kd", {"trainer__strategy": "zero2", "adm": {}}),
    "features of a sharded teacher": (
        "offline_kd",
        {"trainer__strategy": "zero3", "teacher__placement": "sharded", "adm": {"description": "relations"}},
    ),
    "untied head": ("opd", {"trainer__strategy": "zero3", "student__config": tiny.llama(8, tied=False)}),
}
"""What can be combined with a strategy and has a code path of its own there, each with a recipe that takes it."""

TOLD = {
    f"told-{name}": ("opd", changes | {"teacher__prompt": "{answer} {prompt}"}) for name, changes in STRATEGIES.items()
}
"""A frozen teacher that reads the answer, as that of ``recipe=self_distillation`` does."""
TOLD["told-sharded teacher"] = ("opd", TOLD["told-zero3"][1] | {"teacher__placement": "sharded"})
SPECIAL |= TOLD
TWO_STAGES = {
    "few": {"data": {"limit": 30}},
    "own": {
        "rollout": {
            "kind": "on_policy",
            "samples_per_prompt": 2,
            "on_policy_fraction": {"start": 0.0, "end": 1.0},
            "temperature": {"start": 2.0, "end": 0.5},
        },
        "objective": {
            "divergence": "reverse_kl",
            "label_weight": 0.0,
            "logit_weight": 1.0,
            "temperature": {"start": 2.0, "end": 0.5},
        },
    },
}
"""Offline distillation, then on-policy distillation of its student, with schedules."""
CHAINS = {f"stages-{name}": ("offline_kd", {**STRATEGIES[name], "stages": TWO_STAGES}) for name in STRATEGIES}
CHAINS["stages-sharded teacher"] = ("offline_kd", CHAINS["stages-zero3"][1] | {"teacher__placement": "sharded"})
SPECIAL |= CHAINS
RESUMED, TOGETHER = "stages-resumed", "lora-resumed"
"""Go on in two processes from where one was killed: inside of the second stage, and with two networks under ZeRO-3."""

ONLINE = {
    "kdcl-ddp": ("online_kd", tiny.COLLECTED | STRATEGIES["ddp"]),
    "kdcl-zero3": ("online_kd", tiny.COLLECTED | STRATEGIES["zero3"]),
    "switokd-ddp": ("online_kd", tiny.SWITCHED | STRATEGIES["ddp"]),
    "switokd-zero2": ("online_kd", tiny.SWITCHED | STRATEGIES["zero2"]),
}
"""The other methods of training networks together."""
SPECIAL |= ONLINE
ADM = {
    f"adm-{name}": ("online_kd", {**changes, "adm": {"divergence": 0.5, "margin": -1.0}})
    for name, changes in STRATEGIES.items()
}
"""Feature terms of both networks, on top of deep mutual learning."""
SPECIAL |= ADM
ADAPTED = {f"lora-{name}": ("online_kd", tiny.ADAPTED | changes) for name, changes in STRATEGIES.items()}
"""A teacher that learns through an adapter, whose distance to its base is measured at both ends."""
SPECIAL |= ADAPTED

OWN_TEXT = {
    f"several-{name}": (
        "multi_teacher",
        {
            **changes,
            "rollout__kind": "on_policy",
            "rollout__samples_per_prompt": 2,
            "objective": {"divergence": "reverse_kl"},
        },
    )
    for name, changes in STRATEGIES.items()
}
"""Several teachers of the student's own text, as ``recipe=multi_teacher`` has them."""
SPECIAL |= OWN_TEXT

CASES = {
    f"{recipe}-{name}": (recipe, "adamw", changes) for recipe in tiny.RECIPES for name, changes in STRATEGIES.items()
}
CASES |= {f"{recipe}-ddp-sgd": (recipe, "sgd", STRATEGIES["ddp"]) for recipe in ("opd", "sft", "online_kd")}
UNCLIPPED: dict[str, Any] = {"trainer__gradient_clip_val": None, "optimizer__lr": 0.05}
"""A clipped gradient, and a step of Adam, know nothing of a factor."""
CASES |= {f"unclipped-{name}": ("sft", "sgd", UNCLIPPED | STRATEGIES[name]) for name in ("ddp", "zero2", "zero3")}
CASES |= {name: (recipe, "adamw", changes) for name, (recipe, changes) in SPECIAL.items()}
ON_ONE = (
    *UNCLIPPED,
    "teacher__prompt",
    "student__lora",
    "teacher__config",
    "student__config",
    "student__gradient_checkpointing",
    "objective__chunk_size",
    "stages",
    "trainer__max_steps",
    *EACH_ROWS_OWN,
    "student",
    "teacher",
    "online",
    "objective",
    "adm",
)
"""Changes that the process of reference makes, too."""
BF16 = {
    f"bf16-{name}": {**STRATEGIES[name], "trainer__precision": "bf16-mixed"} for name in ("zero1", "zero2", "zero3")
}


CACHED = {f"cached {name}": name for name in STRATEGIES}


def cached(folder: Path) -> list[tuple[dict[str, Any], str]]:
    """Offline distillation whose teacher is a cache of all training rows."""
    made = CacheConfig(**settings("offline_kd"), cache={"out": str(folder / "cache"), "shard_rows": 2000})
    assert cache.run(made.model_dump(by_alias=True), folder) == 0
    teacher = {"kind": "cached", "cache": str(folder / "cache")}
    common = {"trainer__micro_batch_size": 4, "teacher": teacher}
    return [(settings("offline_kd", **common, **STRATEGIES[strategy]), name) for name, strategy in CACHED.items()]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of all runs, trained in one launch, as starting processes costs more than a run."""
    folder = tmp_path_factory.mktemp("two")
    runs = [(settings(*case[:2], trainer__micro_batch_size=4, **case[2]), name) for name, case in CASES.items()]
    runs += [(settings("sft", trainer__micro_batch_size=4, **changes), name) for name, changes in BF16.items()]
    runs += cached(folder)
    runs.append((killed(folder / RESUMED) | {"resume": "auto"}, RESUMED))
    runs.append((killed_together(folder / TOGETHER) | {"resume": "auto"}, TOGETHER))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCH_EXTENSIONS_DIR", str(folder / COMPILED))
        launch([(config, folder / name) for config, name in runs], folder)
    return folder


def killed(run_dir: Path) -> dict[str, Any]:
    """The configuration, under ZeRO-2, of a run that one process has left inside its second stage."""
    recipe, changes = CHAINS["stages-ddp"]
    saving = changes | {"callbacks__checkpoint": {"every_n_steps": 1}, "trainer__strategy": "zero2"}
    assert run(settings(recipe, **saving | {"trainer__strategy": "single"}), run_dir) == 0
    [last] = run_dir.glob("stages/2-*")
    for gone in (run_dir / "model", last / "model", last / "checkpoints" / f"step-{STEPS:08d}"):
        shutil.rmtree(gone)
    (last / "finished").unlink()
    return settings(recipe, trainer__micro_batch_size=4, **saving)


def killed_together(run_dir: Path) -> dict[str, Any]:
    """The configuration, under ZeRO-3, of a run of two networks that one process has left before its last step."""
    saving = ADAPTED["lora-ddp"][1] | {"callbacks__checkpoint": {"every_n_steps": 1}, "trainer__strategy": "zero3"}
    assert run(settings("online_kd", **saving | {"trainer__strategy": "single"}), run_dir) == 0
    for gone in (run_dir / "model", run_dir / "online/teacher/model", run_dir / "checkpoints" / f"step-{STEPS:08d}"):
        shutil.rmtree(gone)
    return settings("online_kd", trainer__micro_batch_size=4, **saving)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory.mktemp("one"), ON_ONE)


@pytest.mark.parametrize("name", [*CASES, RESUMED, TOGETHER])
def test_two_ranks_equal_one_process(name: str, two_ranks: Path, one_process: References) -> None:
    like = {RESUMED: "stages-ddp", TOGETHER: "lora-ddp"}.get(name, name)
    same_weights(two_ranks / name, one_process(CASES[like]))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_log_what_one_process_logs(name: str, two_ranks: Path, one_process: References) -> None:
    same_metrics(two_ranks / name, one_process(CASES[name]), name in CHAINS)


@pytest.mark.parametrize("name", CACHED)
def test_a_cached_teacher_teaches_what_the_live_one_does(name: str, two_ranks: Path, one_process: References) -> None:
    together, expected = weights(two_ranks / name), weights(one_process(CASES["offline_kd-ddp"]))
    for key, tensor in expected.items():
        torch.testing.assert_close(together[key], tensor, rtol=0, atol=1e-5, msg=lambda text, n=key: f"{n}: {text}")


def test_no_operator_was_compiled(two_ranks: Path) -> None:
    """DeepSpeed would build its shared-memory collectives and CPU optimizers on first use, in half a minute each."""
    assert (two_ranks / "opd-zero3_offload" / "model").is_dir()
    assert not list((two_ranks / COMPILED).glob("**/*"))


@pytest.mark.parametrize("name", BF16)
def test_bf16_with_fp32_masters_stays_close_to_fp32(name: str, two_ranks: Path, one_process: References) -> None:
    """bf16 keeps 8 bits: losses within 1 %, and updates, which the masters add up, that point where fp32's point."""
    alone = one_process(CASES["sft-ddp"])
    ours, exact = weights(two_ranks / name), weights(alone)
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}
    for record, expected in zip(tiny.metrics(two_ranks / name), tiny.metrics(alone), strict=True):
        if "loss" in record:
            assert record["loss"] == pytest.approx(expected["loss"], rel=0.01)
    starts = weights_of_source(two_ranks / name), weights_of_source(alone)
    moved = torch.cat([(ours[key].float() - starts[0][key].float()).flatten() for key in sorted(ours)])
    expected_move = torch.cat([(exact[key] - starts[1][key]).flatten() for key in sorted(ours)])
    assert float(torch.nn.functional.cosine_similarity(moved, expected_move, dim=0)) > 0.9


def test_bf16_of_every_stage_is_the_same(two_ranks: Path) -> None:
    first, *others = (weights(two_ranks / name) for name in BF16)
    for other in others:
        for key, tensor in first.items():
            torch.testing.assert_close(other[key], tensor, rtol=0.01, atol=1e-4)


def test_sparsity_under_zero_is_that_of_the_fp32_masters(two_ranks: Path) -> None:
    """A master moves where its bf16 weight does not."""
    for name in BF16:
        last = tiny.metrics(two_ranks / name)[-1]
        assert last["sparsity/fp32/0"] < last["sparsity/bf16/0"]


def weights_of_source(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "source" / "model.safetensors")
