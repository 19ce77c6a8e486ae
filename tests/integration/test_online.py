"""recipe=online_kd through the whole loop: who learns what, resumed bit by bit, exported, and continued elsewhere."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from distill import training
from distill.commands import export
from distill.commands.train import run
from distill.errors import UserError
from distill.teachers.cotrained import CotrainedTeacher
from tests import tiny
from tests.integration.test_resume import assert_same_run, start, wait_for_step

QUIET: dict[str, Any] = {"callbacks__sparsity": None, "callbacks__evaluation": None, "callbacks__checkpoint": None}


def online(**changes: Any) -> dict[str, Any]:
    return tiny.config("online_kd", **changes)


def model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("clip", [None, 1.0])
def test_without_the_divergence_each_network_trains_as_it_does_alone(clip: float | None, tmp_path: Path) -> None:
    options = QUIET | {"trainer__gradient_clip_val": clip, "optimizer__schedule": "cosine"}
    assert run(online(objective__logit_weight=0.0, **options), tmp_path / "both") == 0
    alone = {"objective__label_weight": 1.0, "objective__logit_weight": 0.0, **options}
    assert run(tiny.config("sft", **alone), tmp_path / "student") == 0
    # The teacher is drawn from the seed after the student's.
    begun = str(tmp_path / "both" / "online" / "teacher" / "source")
    taught = {"student": {"path": begun}, "optimizer__lr": 3e-3}
    assert run(tiny.config("sft", **alone | taught), tmp_path / "teacher") == 0
    pairs = {"student": tmp_path / "both", "teacher": tmp_path / "both" / "online" / "teacher"}
    for name, folder in pairs.items():
        ours, expected = model(folder), model(tmp_path / name)
        same = all(torch.allclose(ours[key], expected[key], rtol=0, atol=1e-6) for key in expected)
        # Clipping is of the norm over all networks.
        assert same == (clip is None), name


def test_each_network_has_its_own_rate_under_one_schedule(tmp_path: Path) -> None:
    assert run(online(optimizer__schedule="linear", **QUIET), tmp_path) == 0
    rates = [(record["lr"], record["online/lr"]) for record in tiny.metrics(tmp_path) if "lr" in record]
    assert rates[0] == (1e-2, 3e-3)
    assert all(own == pytest.approx(0.3 * lr) for lr, own in rates)
    assert rates[-1][0] < rates[0][0]


def test_what_is_recorded_of_every_network(tmp_path: Path) -> None:
    assert run(online(**tiny.COLLECTED), tmp_path) == 0
    last = tiny.metrics(tmp_path)[-1]
    for name in tiny.MEMBERS:
        assert {f"online/{name}/{key}" for key in ("loss", "ce", "forward_kl")} <= set(last)
        for part in ("sparsity", "sparsity_null", "sparsity_since_last"):
            assert f"online/{name}/{part}/bf16/1e-5" in last
        assert last[f"eval/{name}_perplexity"] > 1
        assert (tmp_path / "online" / name / "sparsity" / "step_000006.csv").exists()
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "online" / name / "model")
    assert last["eval/reverse_kl"] > 0, "of the student to the mean of the others"
    for key in ("ce", "forward_kl"):
        assert len({last[key], *(last[f"online/{name}/{key}"] for name in tiny.MEMBERS)}) == 3


def test_peers_of_one_configuration_do_not_begin_alike(tmp_path: Path) -> None:
    spec = {"config": tiny.llama(8), "tokenizer": tiny.TOKENIZER}
    members = {"teacher": {"kind": "cotrained", "members": {"one": spec, "two": spec}}}
    assert run(online(**members, **QUIET), tmp_path) == 0
    found = [load_file(tmp_path / place / "source" / "model.safetensors") for place in ("", "online/one", "online/two")]
    key = "model.embed_tokens.weight"
    assert len({float(one[key].sum()) for one in found}) == 3


def long(**changes: Any) -> dict[str, Any]:
    options = {"trainer__max_steps": 20, "callbacks__checkpoint__every_n_steps": 3, "online__method": "switokd"}
    options["callbacks__sparsity"] = {"every_n_steps": 4, "since_last": True}
    dropout = {**tiny.llama(8), "attention_dropout": 0.1, "initializer_range": 0.5}
    wide = {**tiny.llama(16), "attention_dropout": 0.1, "initializer_range": 0.5}
    return online(student__config=dropout, teacher__config=wide, **options, **changes)


def test_killed_and_resumed_equals_uninterrupted_in_both_networks(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    assert run(long(), straight) == 0
    process = start(long(), broken)
    wait_for_step(broken, 8, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(long(resume="auto"), broken) == 0
    assert_same_run(broken, straight)
    ours, theirs = (model(folder / "online" / "teacher") for folder in (broken, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shares = [record["online/teacher/paused"] for record in tiny.metrics(straight)[1:]]
    assert any(0 < share < 1 for share in shares)
    tables = [(f / "online/teacher/sparsity/step_000008.csv").read_text() for f in (broken, straight)]
    assert tables[0] == tables[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert run(online(callbacks__sparsity=None, callbacks__evaluation=None), folder) == 0
    return folder


def test_the_teacher_is_exported_from_a_checkpoint_too(finished: Path, tmp_path: Path) -> None:
    for network, place in (("student", finished), ("teacher", finished / "online" / "teacher")):
        out = tmp_path / network
        asked = {"checkpoint": str(finished), "network": network, "out": str(out), "dtype": None}
        assert export.run(asked, out) == 0
        found, expected = load_file(out / "model.safetensors"), model(place)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert AutoModelForCausalLM.from_pretrained(out).config.hidden_size == {"student": 8, "teacher": 16}[network]
    with pytest.raises(UserError, match="`network` must be one that the run has trained: student, teacher, but is 'b'"):
        export.run({"checkpoint": str(finished), "network": "b", "out": str(tmp_path), "dtype": None}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"online__lr": 1e-3}, "`online.lr` must be 0.003 as in"),
        (
            {"teacher__config": tiny.llama(12)},
            r"a checkpoint of this student \('cotrained.0.lm_head.weight'|cotrained.0",
        ),
        ({"teacher": {"kind": "none"}, "online": None}, "a checkpoint of this student"),
    ],
)
def test_a_checkpoint_of_other_networks_is_refused(
    changes: dict[str, Any], says: str, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        run(online(resume=str(finished), trainer__max_steps=8, **changes), tmp_path / "more")


def test_images(tmp_path: Path) -> None:
    assert run(online(**tiny.PICTURED_ONLINE), tmp_path) == 0
    last = tiny.metrics(tmp_path)[-1]
    assert 0 <= last["eval/teacher_accuracy"] <= 1
    assert last["eval/agreement"] <= 1
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "online" / "teacher" / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "trained together with the student" in card
    assert json.loads((tmp_path / "online/teacher/model/config.json").read_text())["model_type"] == "convnext"


def test_weights_of_a_co_trained_network_that_no_logit_reads_do_not_train() -> None:
    """DDP would wait for their gradient."""
    dino = {**tiny.VIT, "model_type": "dinov2"}
    config = tiny.config("online_kd", **tiny.PICTURED_ONLINE | {"teacher": {"kind": "cotrained", "config": dino}})
    _, teacher = training.build_models(config)
    assert isinstance(teacher, CotrainedTeacher)
    still = [n for n, p in teacher.networks["teacher"].model.named_parameters() if not p.requires_grad]
    assert still == ["dinov2.embeddings.mask_token"]


def test_networks_in_another_order_are_refused(tmp_path: Path) -> None:
    """Of one shape, they would take each other's places without a word."""
    members = tiny.PEERS["members"]
    first, second = members
    alike = {name: members[first] for name in (first, second)}
    options = {"trainer__max_steps": 4, "callbacks__checkpoint": {"every_n_steps": 2}}
    peers = [
        {**tiny.PEERS, "members": {name: alike[name] for name in order}} for order in ((first, second), (second, first))
    ]
    configs = [tiny.config("online_kd", **tiny.COLLECTED | options | {"teacher": given}) for given in peers]
    assert run(configs[0], tmp_path / "run") == 0
    with pytest.raises(UserError, match=r"`teacher.members` must be \[.*\], in this order"):
        run(configs[1] | {"resume": str(tmp_path / "run" / "checkpoints" / "step-00000002")}, tmp_path / "more")
    assert run(configs[0] | {"resume": str(tmp_path / "run" / "checkpoints" / "step-00000002")}, tmp_path / "same") == 0
