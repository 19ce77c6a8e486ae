"""Whole plans of tiny runs, from the command line and from Python."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from distill import cli, models, planning
from distill.config.schema_plan import PlanConfig, size_in_bytes
from distill.errors import UserError
from distill.maskfile import MaskFile
from distill.models import CausalLM
from distill.planning import advice, fit, plan, skeleton
from tests import masks, tiny


def planned(recipe: str = "opd", machine: dict[str, Any] | None = None, **changes: Any) -> plan.Plan:
    values = tiny.config(recipe, **changes)
    config = PlanConfig(**values, plan=machine or {}).model_dump(by_alias=True)
    return plan.make(config, plan.prepare(config))


@pytest.mark.parametrize("recipe", list(tiny.RECIPES))
def test_every_recipe_has_a_plan(recipe: str) -> None:
    found = planned(recipe)
    step = found.phases["training step"]
    assert step["gradients"] <= step["student weights"] == found.parameters["student"]
    assert ("teacher" in step) == (recipe not in ("sft", "self_distillation"))
    assert ("rollout" in found.phases) == (recipe in ("opd", "speculative_kd", "self_distillation"))
    assert found.disk["checkpoints"] == 3 * 3 * found.parameters["student"], "weights and two moments, kept 2 + 1"
    assert found.disk["sparsity"] == 2 * found.parameters["student"], "measured twice, at steps 3 and 6"
    assert found.tokens["per step"] > 0


def test_a_speculative_step_asks_its_teacher_no_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows bring the teacher's states along, 16 wide and in fp32; on a GPU they wait outside."""
    asked: list[Any] = []
    states = CausalLM.hidden
    monkeypatch.setattr(CausalLM, "hidden", lambda lm, ids, mask: asked.append(lm) or states(lm, ids, mask))
    options = {"callbacks__evaluation": None, "trainer__max_steps": 1, "data__batch_size": 96}
    here = planned("speculative_kd", **options)
    assert len({id(lm) for lm in asked}) == 1, "the student alone"
    told = 96 * 5 * 16 * 4
    assert here.phases["rollout"]["teacher's states"] == told
    assert here.phases["training step"]["teacher's states"] >= told
    there = planned("speculative_kd", {"gpu": True}, **options)
    assert there.phases["rollout"]["teacher's states"] == told
    assert there.host == there.machine.baseline + 3 * there.parameters["student"] + told, "beside a checkpoint's copy"
    # A step on the dataset's completions asks.
    asked.clear()
    planned("speculative_kd", **options, rollout__on_policy_fraction=0.5)
    assert len({id(lm) for lm in asked}) == 2


def test_a_teacher_whose_head_is_narrower_than_the_rest_of_it() -> None:
    """States of OPT-350m are projected before the head."""
    opt = {"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 1}
    opt |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    options = {"callbacks__evaluation": None, "data__batch_size": 96, "teacher__config": opt}
    assert planned("speculative_kd", **options).phases["rollout"]["teacher's states"] == 96 * 5 * 8 * 4


def test_a_cached_teacher_takes_no_memory() -> None:
    cached = planned("offline_kd", teacher={"kind": "cached", "cache": "anywhere"})
    assert "teacher" not in cached.phases["training step"]
    assert cached.parameters["teacher"] == 0


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    words = ["plan", "recipe=opd", "trainer=zero3", "data.batch_size=16", "plan.devices=8", "plan.device_memory=64GiB"]
    assert cli.main([*words, "student=llama_tiny", "student.path=null", f"plan.out={out}"]) == 0
    printed, content = capsys.readouterr().out, json.loads(out.read_text())
    assert "8 × CPU" in printed
    assert "largest micro_batch_size" in printed
    assert content["machine"]["ranks"] == 8
    assert content["gather"] == "model"
    assert content["limit"] == 8 << 30
    assert content["fits"] is True
    assert content["peak"] == sum(content["phases"][content["peak_phase"]].values())


@pytest.mark.parametrize(("strategy", "copies", "itemsize"), [("single", 1, 2), ("zero3", 4, 4)])
def test_extrapolation_keeps_attention_and_mlp_weights(strategy: str, copies: int, itemsize: int) -> None:
    """``copies``: of how many ranks each has its share."""
    trainer = {"strategy": strategy, "precision": "bf16-mixed" if strategy == "zero3" else "bf16-true", "max_steps": 6}
    machine = {"devices": copies}
    values = {"trainer": trainer, "data__batch_size": 16}
    found = planned("opd", machine, **values, callbacks__extrapolation={})
    # Two layers of 8 × 8 (four) and 8 × 16 (three) matrices, of which every phase has one copy and a search three.
    elements = 2 * (4 * 64 + 3 * 128)
    assert {terms[plan.EARLIER] for name, terms in found.phases.items() if name != "extrapolation"} == {
        elements * itemsize // copies
    }
    assert found.phases["extrapolation"][plan.EARLIER] == 3 * elements * itemsize // copies
    assert found.disk["extrapolation"] == 3 * elements * itemsize, "of steps 1, 2 and 4"
    without = planned("opd", machine, **values)
    assert plan.EARLIER not in without.phases["training step"]
    assert "extrapolation" not in without.disk


@pytest.mark.parametrize(("trainer", "here", "usual"), [("32-true", 10, 8), ("bf16-true", 14, 4)])
def test_a_mask_takes_its_share_of_the_optimizer_state(trainer: str, here: int, usual: int, tmp_path: Path) -> None:
    """Bytes for each coordinate: two moments, a master of bf16 weights, two for its position."""
    mask = masks.write(tmp_path / "mask", tiny.config("sft"), 0.2, empty=None)
    found = planned("sft", trainer__precision=trainer, callbacks__update_mask={"path": str(mask)})
    elements = found.parameters["trained"] * MaskFile(mask, "mask").density
    assert found.phases["training step"]["optimizer state"] == pytest.approx(elements * here, rel=0.03)
    dense = planned("sft", trainer__precision=trainer).phases["training step"]["optimizer state"]
    assert dense == pytest.approx(found.parameters["trained"] * usual, rel=0.03)


def test_larger_micro_batches_need_more_and_a_small_machine_takes_fewer() -> None:
    sizes = {rows: planned("sft", trainer__micro_batch_size=rows, data__batch_size=64) for rows in (1, 64)}
    one, all_rows = (sum(found.phases["training step"].values()) for found in sizes.values())
    assert one < all_rows
    values = tiny.config("sft", data__batch_size=64)
    config = PlanConfig(**values, plan={"device_memory": "64GiB"}).model_dump(by_alias=True)
    planner = plan.prepare(config)
    assert fit.largest(planner, plan.make(config, planner)) == 64
    small = planned("sft", {"device_memory": "100MiB"})
    assert small.fits is False, "an interpreter alone takes more"


def test_an_adapter_trains_less_than_the_student() -> None:
    pytest.importorskip("peft")
    lora = {"r": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": "all-linear"}
    found = planned("opd", student__lora=lora, trainer__precision="bf16-mixed").phases["training step"]
    assert 0 < found["gradients"] < found["student weights"]


def test_models_without_a_cache_are_planned_too() -> None:
    mamba = {"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 2, "state_size": 4}
    assert "rollout" in planned("opd", student__config=mamba).phases


def test_the_skeleton_has_the_models_shapes_and_ties() -> None:
    spec = tiny.config("sft")["student"]
    words, mode = skeleton.tokenizer(spec, "student"), FakeTensorMode()
    ours = skeleton.build(spec, words, "student", mode).model
    real = models.build(spec, seed=0, key="student").model
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (ours, real)]
    assert shapes[0] == shapes[1]
    assert all(isinstance(p, FakeTensor) for p in ours.parameters())


def test_gathering_by_layer_is_for_students_that_do_not_fit() -> None:
    config = tiny.config("opd", trainer__strategy="zero3", data__batch_size=16)
    assert planning.choose_gather(config, 2, 64 << 30) == "model"
    assert planning.choose_gather(config, 2, 64 << 20) == "layers"


@pytest.mark.parametrize(("memory", "expected"), [(64 << 30, "model"), (1 << 16, "layers")])
def test_auto_asks_the_plan_for_a_student_that_is_not_small(
    memory: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = tiny.config("opd", trainer__strategy="zero3"), list[Any]()
    machine = replace(plan.describe(config | {"plan": plan.HERE}, 0), device_memory=memory)
    monkeypatch.setattr(plan, "describe", lambda *_, **__: machine)
    monkeypatch.setattr(plan, "choose_gather", lambda *arguments: asked.append(arguments) or "layers")
    student = models.build(config["student"], seed=0, key="student").model
    assert planning.agreed_gather(config, student) == expected
    assert bool(asked) == (expected == "layers")
    assert planning.agreed_gather(config | {"rollout": {"gather": "layers"}}, student) == "layers"
    assert planning.agreed_gather(config | {"trainer": {"strategy": "zero2"}}, student) == "auto"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["student.path=/no/such/folder"], "student.path"),
        (["student.path=nobody/nothing-cached"], "student.path"),
        (
            ["student=llama_tiny", "student.config={model_type: llama, hidden_size: 100, num_attention_heads: 7}"],
            "student.config",
        ),
        (["plan.device_memory=80"], "plan.device_memory"),
        (["plan.device_memory=1MiB"], "plan.device_memory"),
        (["plan.devices=3", "trainer=ddp"], "data.batch_size"),
        (["plan.devices=2"], "trainer.strategy"),
        (["plan.devices=0"], "plan.devices"),
        (["plan.device=2"], "plan.device"),
        (["data.batch_size=8", "plan.devices=8", "plan.devices_per_node=3", "trainer=zero1"], "plan.devices_per_node"),
    ],
)
def test_mistakes_are_one_line(words: list[str], key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert any(f"`{key}`" in line for line in lines)
    assert len(lines) == 1


def test_a_model_without_its_configuration_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"config\.json|tokenizer\.json"):
        planned("sft", student__path="nobody/nothing-cached", student__config=None, student__tokenizer=None)


def test_sizes() -> None:
    assert size_in_bytes("80GiB") == 80 * 2**30
    assert size_in_bytes("1.5 GB") == 1_500_000_000
    with pytest.raises(ValueError, match="80GiB"):
        size_in_bytes("many")


def test_an_interpreter_that_is_most_of_the_peak_is_named() -> None:
    values = tiny.config("sft")
    config = PlanConfig(**values, plan={}).model_dump(by_alias=True)
    assert "Python and libraries" in advice.give(plan.make(config, plan.prepare(config)), config)[0]


def test_a_teacher_of_ones_own_is_said_to_be_missing() -> None:
    own = {"teacher": {"kind": "custom", "custom": {"_target_": "somewhere.Teacher"}}}
    for changes, said in ((own, True), ({}, False)):
        config = PlanConfig(**tiny.config("offline_kd", **changes), plan={}).model_dump(by_alias=True)
        text = " ".join(advice.give(plan.make(config, plan.prepare(config)), config))
        assert ("teacher.custom is not counted" in text) == said


def test_positions_of_the_model_bound_rollouts() -> None:
    made = planned("opd", rollout__max_new_tokens=10_000)
    assert made.work.length == made.work.prompt + made.work.completion <= 128
    assert made.tokens["sampled per step"] <= made.work.rows * 128


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft, wide vocabulary", "opd, long rollouts", "offline_kd, big teacher"])
def test_the_plan_is_within_15_percent_of_the_measured_peak(name: str, tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "benchmarks" / "plan.py"
    spec = importlib.util.spec_from_file_location("benchmark_plan", file)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.prepare(tmp_path)
    assert benchmark.planned(name, tmp_path)["peak"] == pytest.approx(benchmark.measured(name, tmp_path), rel=0.15)
