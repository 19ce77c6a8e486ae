"""recipe=online_lora through the whole loop: what trains and what stays, resumed bit by bit, exported, and stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill import checkpoint, training
from distill.callbacks.collapse import Drift
from distill.collapse import measure
from distill.commands import export
from distill.commands.train import run
from distill.errors import RunError, UserError
from distill.likelihood import row
from distill.types import collate
from tests import tiny

ADAPTER: dict[str, Any] = tiny.ADAPTED["teacher"]["lora"]
QUIET: dict[str, Any] = {"callbacks__sparsity": None, "callbacks__evaluation": None}


def adapted(**changes: Any) -> dict[str, Any]:
    return tiny.config("online_kd", **tiny.ADAPTED | changes)


def test_only_the_adapter_is_in_the_optimizer() -> None:
    config = adapted()
    parts = training.load(config)
    optimizer = training._module(config, parts).configure_optimizers()["optimizer"]
    beside = [group for group in optimizer.param_groups if group["lr"] == config["online"]["lr"]]
    trained = {id(p) for group in beside for p in group["params"]}
    named = dict(parts.cotrained["teacher"].model.named_parameters())
    assert trained == {id(p) for name, p in named.items() if "lora_" in name}
    assert all(not p.requires_grad for name, p in named.items() if "lora_" not in name)


def test_resumed_equals_uninterrupted_in_both_networks(tmp_path: Path) -> None:
    """Bit by bit, with dropout in the adapter, too; the distance to the base is measured again from the same base."""
    options: dict[str, Any] = {"trainer__max_steps": 8, "callbacks__evaluation": None}
    options |= {f"callbacks__{name}": {"every_n_steps": 4} for name in ("checkpoint", "sparsity", "collapse")}
    config = adapted(teacher__lora=ADAPTER | {"dropout": 0.1}, **options)
    straight, again = tmp_path / "straight", tmp_path / "again"
    assert run(config, straight) == 0
    assert run(config | {"resume": str(straight / "checkpoints" / "step-00000004")}, again) == 0
    for place in ("model", "online/teacher/model"):
        ours, theirs = (load_file(folder / place / "model.safetensors") for folder in (again, straight))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    records = [[untimed(record) for record in tiny.metrics(folder)[-4:]] for folder in (again, straight)]
    assert records[0] == records[1]
    assert "eval/teacher_kl_to_base" in records[0][-1]


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if "time" not in key and "per_second" not in key}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert run(adapted(callbacks__collapse={"every_n_steps": 2}), folder) == 0
    return folder


def test_both_networks_learn_and_the_base_stays(finished: Path) -> None:
    source, trained = (
        load_file(finished / "online" / "teacher" / part / "model.safetensors") for part in ("source", "model")
    )
    moved = {name for name in source if not torch.equal(source[name], trained[name])}
    assert moved
    assert all("_proj" in name for name in moved), "adapters are on linear layers"
    last = tiny.metrics(finished)[-1]
    assert 0 < last["online/teacher/sparsity/bf16/1e-5"] < 1


def test_what_is_recorded_is_the_distance_to_the_base(finished: Path) -> None:
    """CE is ln of the perplexity that an evaluation finds; the KL is 0 before the first step."""
    records = [record for record in tiny.metrics(finished) if "eval/teacher_ce" in record]
    assert [record["step"] for record in records] == [0, 2, 4, 6]
    assert records[0]["eval/teacher_kl_to_base"] == 0
    kls = [record["eval/teacher_kl_to_base"] for record in records]
    assert kls == sorted(kls)
    for record in (records[0], records[-1]):
        assert record["eval/teacher_ce"] == pytest.approx(torch.tensor(record["eval/teacher_perplexity"]).log().item())


def test_the_distance_to_the_base_is_the_one_between_two_models(finished: Path) -> None:
    folder = finished / "online" / "teacher"
    config = tiny.config("offline_kd", student={"path": str(folder / "model")})
    config["teacher"] |= {"path": str(folder / "source"), "config": None, "tokenizer": None}
    parts = training.load(config)
    lm, (base, data) = parts.lm, (parts.teacher, parts.eval_data)
    assert base is not None
    batch = collate([row(data[number], counts=True) for number in range(8)], lm.pad_id, 0, False)
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(one.head(one.hidden), -1) for one in (lm.signal(batch), base.signal(batch)))
    last = tiny.metrics(finished)[-1]
    ce = -ours.gather(-1, batch.targets[:, None]).mean()
    assert last["eval/teacher_ce"] == pytest.approx(float(ce), rel=1e-4)
    apart = (ours.exp() * (ours - theirs)).sum(-1).mean()
    assert last["eval/teacher_kl_to_base"] == pytest.approx(float(apart), rel=1e-3)


def test_measuring_leaves_the_network_as_it_was() -> None:
    parts = training.load(adapted())
    network = parts.cotrained["teacher"]
    network.model.train()
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    needed = {name: p.requires_grad for name, p in network.model.named_parameters()}
    first = measure(network, parts.eval_data, batch_size=3)
    assert measure(network, parts.eval_data, batch_size=8).kl == pytest.approx(first.kl) != 0
    assert {name: p.requires_grad for name, p in network.model.named_parameters()} == needed
    assert network.model.training


def test_the_adapted_teacher_is_exported_merged(finished: Path, tmp_path: Path) -> None:
    asked = {"checkpoint": str(finished), "network": "teacher", "out": str(tmp_path), "dtype": None}
    assert export.run(asked, tmp_path) == 0
    found, expected = (
        load_file(f / "model.safetensors") for f in (tmp_path, finished / "online" / "teacher" / "model")
    )
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_a_teacher_that_collapses_stops_the_run_saved(tmp_path: Path) -> None:
    """By a rate that is far too high for one that has learned; a run without limits goes on from there."""
    learned = {"teacher__config": None, "teacher__path": "package://distill/assets/teacher", "data__digits": 3}
    options = {"online__lr": 0.3, "trainer__max_steps": 9, **learned, **QUIET}
    says = r"^eval/teacher_ce is \d.*, above 0\.7\d+ \(0\.0\d+ of its base \+ callbacks\.collapse\.max_ce.* at step 3"
    with pytest.raises(RunError, match=says):
        run(adapted(callbacks__collapse={"every_n_steps": 3}, **options), tmp_path)
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert (tmp_path / "report.html").exists()
    assert not (tmp_path / "model").exists(), "as of a run that a signal has stopped"
    assert run(adapted(resume="auto", callbacks__collapse=None, **options), tmp_path) == 0
    assert tiny.metrics(tmp_path)[-1]["step"] == 9


@pytest.mark.parametrize("key", ["student", "teacher"])
def test_an_adapter_that_would_be_scaled_otherwise_is_refused(key: str, tmp_path: Path) -> None:
    """Its weights fit all the same."""
    options = QUIET | {"student__lora": {"r": 2, "alpha": 4.0}, "trainer__max_steps": 2}
    assert run(adapted(**options), tmp_path / "run") == 0
    before = options["student__lora"] if key == "student" else ADAPTER
    more = options | {"trainer__max_steps": 4, "resume": "auto", f"{key}__lora": before | {"alpha": 64.0}}
    with pytest.raises(UserError, match=rf"`{key}.lora.alpha` must be \d+\.0, as in .*, but is 64\.0"):
        run(adapted(**more), tmp_path / "run")
    assert run(adapted(**more | {f"{key}__lora": before}), tmp_path / "run") == 0
    assert tiny.metrics(tmp_path / "run")[-1]["step"] == 4


@pytest.mark.parametrize(
    ("drift", "limits", "beyond"),
    [
        (Drift(1.0, 0.5, 2.9), (0.7, 3.0), []),
        (Drift(1.3, 0.5, 2.9), (0.7, 3.0), ["ce"]),
        (Drift(1.3, 0.5, 2.9), (None, 2.0), ["kl_to_base"]),
        (Drift(math.nan, 0.5, math.nan), (0.7, 3.0), ["ce", "kl_to_base"]),
        (Drift(9.0, 0.5, 9.0), (None, None), []),
    ],
)
def test_what_is_beyond_a_limit(drift: Drift, limits: tuple[float | None, float | None], beyond: list[str]) -> None:
    assert [key for key, _, _ in drift.beyond(*limits)] == beyond


def test_a_checkpoint_of_another_adapter_is_refused(finished: Path, tmp_path: Path) -> None:
    for other in ({"r": 4}, None):
        changes = {"teacher": {**tiny.ADAPTED["teacher"], "lora": other}, "trainer__max_steps": 8}
        with pytest.raises(UserError, match="a checkpoint of this student"):
            run(adapted(resume=str(finished), **changes), tmp_path / "more")


def test_each_member_has_an_adapter_of_its_own(tmp_path: Path) -> None:
    first, second = tiny.MEMBERS
    members = {first: tiny.PEERS["members"][first] | {"lora": ADAPTER}, second: tiny.PEERS["members"][second]}
    config = tiny.config("online_kd", **tiny.COLLECTED | {"teacher": tiny.PEERS | {"members": members}}, **QUIET)
    assert run(config, tmp_path) == 0
    last = tiny.metrics(tmp_path)[-1]
    assert f"eval/{first}_kl_to_base" in last
    assert f"eval/{second}_kl_to_base" not in last, "it has no base"


def test_feature_terms_go_with_an_adapter(tmp_path: Path) -> None:
    config = adapted(adm={"divergence": 0.5, "margin": -1.0}, **QUIET)
    assert run(config, tmp_path) == 0
    assert tiny.metrics(tmp_path)[-1]["divergence"] != 0
