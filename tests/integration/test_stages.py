"""Runs of several stages: what each hands on, the records of the whole, and resuming inside and between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from distill import chain, checkpoint
from distill.commands import eval as evaluation
from distill.commands import export, train
from distill.commands.train import run
from distill.config.schema import EvalConfig
from distill.errors import UserError
from distill.report.collect import collect
from distill.report.summary import summarise
from tests import tiny
from tests.integration.test_resume import assert_same_run, start, wait_for_step
from tests.processes import Process

FIRST, SECOND = 5, 4
STAGES: dict[str, Any] = {
    "wide": {"trainer": {"max_steps": FIRST}, "data": {"operator": "-"}},
    "few": {
        "rollout": {"kind": "on_policy"},
        "objective": {"divergence": "reverse_kl", "label_weight": 0.0, "logit_weight": 1.0},
        "data": {"limit": 30},
        "optimizer": {"lr": 5e-3},
    },
}
TRAINED = "model/model.safetensors"


def settings(**changes: Any) -> dict[str, Any]:
    """Offline distillation of subtractions, then on-policy distillation of few additions."""
    options = {"stages": STAGES, "trainer__max_steps": SECOND, "callbacks__evaluation__every_n_steps": 3}
    config = {**tiny.llama(8), "attention_dropout": 0.1}
    return tiny.config("offline_kd", student__config=config, **options | changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    torch.set_num_threads(1)
    assert run(settings(), folder) == 0
    return folder


@pytest.fixture(autouse=True)
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of such a short run; ``straight`` has them."""
    for command in ("train", "stages"):
        monkeypatch.setattr(f"distill.commands.{command}.render", lambda records, out: out.write_text(""))


def parts(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "stages").iterdir())


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_each_stage_starts_from_the_student_of_the_one_before(straight: Path) -> None:
    first, second = parts(straight)
    assert [first.name, second.name] == ["1-wide", "2-few"]
    assert same(second / "source/model.safetensors", first / TRAINED)
    assert not same(first / "source/model.safetensors", first / TRAINED)
    assert same(straight / "source/model.safetensors", first / "source/model.safetensors")
    assert same(straight / TRAINED, second / TRAINED)


def test_a_stage_is_the_run_that_its_configuration_describes(straight: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((parts(straight)[1] / "config.yaml").read_text())
    assert config["rollout"]["kind"] == "on_policy"
    assert config["optimizer"]["lr"] == 5e-3
    assert run(config, tmp_path) == 0
    assert same(tmp_path / TRAINED, straight / TRAINED)


def test_all_stages_are_judged_by_the_last_ones_examples(straight: Path) -> None:
    for folder in parts(straight):
        prompts = [json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert all("+" in prompt for prompt in prompts)


def test_the_whole_has_the_records_of_all_stages(straight: Path) -> None:
    records = tiny.metrics(straight)
    assert [record["step"] for record in records] == [*range(FIRST + 1), *range(FIRST, FIRST + SECOND + 1)]
    assert [record["stage"] for record in records] == ["wide"] * (FIRST + 1) + ["few"] * (SECOND + 1)
    for key in ("time", "tokens"):
        values = [record[key] for record in records if key in record]
        assert values == sorted(values)
    own = [record for folder in parts(straight) for record in tiny.metrics(folder)]
    assert [record.get("loss") for record in records] == [record.get("loss") for record in own]
    samples = [json.loads(line) for line in (straight / "samples.jsonl").read_text().splitlines()]
    assert {sample["stage"] for sample in samples} == {"wide", "few"}
    assert max(sample["step"] for sample in samples) == FIRST + SECOND


def test_sparsity_of_the_whole_is_since_the_first_source(straight: Path) -> None:
    last, own = tiny.metrics(straight)[-1], tiny.metrics(parts(straight)[1])[-1]
    before, after = weights(straight / "source/model.safetensors"), weights(straight / TRAINED)
    between = weights(parts(straight)[0] / TRAINED)
    for key, start_of in (("update/relative_norm_fp32", before), ("stage/update/relative_norm_fp32", between)):
        names = sorted(after)
        moved = torch.cat([(after[name] - start_of[name]).flatten() for name in names]).norm()
        assert last[key] == pytest.approx(float(moved / torch.cat([start_of[n].flatten() for n in names]).norm()), 1e-5)
    assert last["stage/sparsity/bf16/1e-5"] == own["sparsity/bf16/1e-5"]
    assert last["sparsity/bf16/1e-5"] == own["origin/sparsity/bf16/1e-5"]


def test_the_report_and_the_card_tell_of_the_stages(straight: Path) -> None:
    page = (straight / "report.html").read_text()
    assert f"finished, {FIRST + SECOND} steps" in page
    assert 'href="stages/2-few/report.html"' in page
    assert "dataset → on_policy" in page
    card = (straight / "model" / "README.md").read_text()
    assert f"| wide | {FIRST} |" in card
    assert "## Stages" not in (parts(straight)[1] / "model" / "README.md").read_text()


def test_a_finished_run_resumed_changes_nothing(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path / "run")
    assert run(settings(resume="auto"), tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", straight)


def test_killed_and_resumed(straight: Path, tmp_path: Path) -> None:
    process = start(settings(), tmp_path)
    wait_for_step(tmp_path / "stages" / "2-few", 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model").exists()
    assert run(settings(resume="auto"), tmp_path) == 0
    assert_same_run(tmp_path, straight)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["first stage", "exported"])
def test_killed_before_the_first_stage_is_finished(
    moment: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its steps, and after its export."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*{"first stage": (checkpoint, "prune"), "exported": (train, "_finish")}[moment], die)
        with pytest.raises(Killed):
            run(settings(), tmp_path)
    assert (tmp_path / "stages" / "1-wide" / "model").exists() == (moment == "exported")
    assert run(settings(resume="auto"), tmp_path) == 0
    assert_same_run(tmp_path, straight)


def train_until(config: dict[str, Any], run_dir: Path, stage: int) -> int:
    """Is killed once it has exported a stage, before it has told of it."""
    finish, left = train._finish, [stage]

    def kill(*given: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(*given, **options)

    train._finish = kill
    torch.set_num_threads(1)
    return run(config, run_dir)


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_after_an_export_without_a_checkpoint_to_go_on_from(stage: int, straight: Path, tmp_path: Path) -> None:
    config, path = settings(callbacks__checkpoint=None), tmp_path / "run"
    process = Process(tmp_path, train_until, config, path, stage)
    assert process.wait() == -signal.SIGKILL, process.said()
    killed = parts(path)[stage - 1]
    trained = (killed / TRAINED).stat().st_ino
    assert not (killed / "finished").exists()
    assert not (killed / "checkpoints").exists()
    assert run(config | {"resume": "auto"}, path) == 0
    assert_same_run(path, straight)
    assert (killed / TRAINED).stat().st_ino == trained, "it is not trained again"
    assert (killed / "model" / "README.md").exists()
    assert (killed / "report.html").exists()


@pytest.mark.parametrize("begun", [False, True])
def test_killed_between_the_stages(begun: bool, straight: Path, tmp_path: Path) -> None:
    """After the end of the first, and before the first checkpoint of the second."""
    path = tmp_path / "run"
    shutil.copytree(straight, path)
    first, second = parts(path)
    for gone in (path / "model", second / "checkpoints", second / "model", *([] if begun else [second])):
        shutil.rmtree(gone)
    (second / "finished").unlink(missing_ok=True)
    trained = (first / TRAINED).stat().st_ino
    assert run(settings(resume="auto"), path) == 0
    assert_same_run(path, straight)
    assert (first / TRAINED).stat().st_ino == trained, "a finished stage is left alone"


@pytest.mark.parametrize(("stage", "number", "status"), [("wide", signal.SIGTERM, 143), ("few", signal.SIGINT, 130)])
def test_a_signal_ends_the_whole_with_its_status(
    stage: str, number: int, status: int, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = chain.WholeLogger.log_metrics

    def signalled(logger: chain.WholeLogger, metrics: dict[str, float], step: int | None = None) -> None:
        log(logger, metrics, step)
        if (logger.stage.name, step) == (stage, 2):
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(chain.WholeLogger, "log_metrics", signalled)
        assert run(settings(), tmp_path) == status
    stopped = tiny.metrics(tmp_path)[-1]
    assert (stopped["stage"], stopped["step"]) == (stage, 3 if stage == "wide" else FIRST + 3)
    assert summarise(collect(tmp_path)).status.startswith("stopped or running")
    assert run(settings(resume="auto"), tmp_path) == 0
    assert_same_run(tmp_path, straight)


def test_out_of_time_is_told_by_the_status(tmp_path: Path) -> None:
    assert run(settings(trainer__max_time=1e-3), tmp_path) == 124
    assert [path.name for path in parts(tmp_path)] == ["1-wide"]


def test_reversed_runs_backwards(tmp_path: Path) -> None:
    assert run(settings(stages_order="reversed"), tmp_path) == 0
    assert [path.name for path in parts(tmp_path)] == ["1-few", "2-wide"]
    assert [record["stage"] for record in tiny.metrics(tmp_path)][:: FIRST + SECOND + 1] == ["few", "wide"]
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert all("+" in prompt for prompt in prompts), "judged as in the order given"


def test_mixed_is_one_run_on_all_data(tmp_path: Path) -> None:
    stages = {name: {key: value[key] for key in value if key in ("data", "trainer")} for name, value in STAGES.items()}
    assert run(settings(stages=stages, stages_order="mixed"), tmp_path / "run") == 0
    assert not (tmp_path / "run" / "stages").exists()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == FIRST + SECOND
    assert {name: part["weight"] for name, part in config["data"]["parts"].items()} == {
        "wide": 12 * FIRST,
        "few": 12 * SECOND,
    }
    assert tiny.metrics(tmp_path / "run")[-1]["step"] == FIRST + SECOND
    before = weights(tmp_path / "run" / TRAINED)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{FIRST + SECOND:08d}")
    assert run(settings(stages=stages, stages_order="mixed", resume="auto"), tmp_path / "run") == 0
    after = weights(tmp_path / "run" / TRAINED)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_directories_are_refused(straight: Path, tmp_path: Path) -> None:
    before = (straight / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="resume=auto"):
        run(settings(), straight)
    with pytest.raises(UserError, match=r"^`stages` must be 1-wide, 2-few, …"):
        run(settings(resume="auto", stages_order="reversed"), straight)
    with pytest.raises(UserError, match="has stages"):
        run(tiny.config("sft", resume="auto"), straight)
    assert (straight / "metrics.jsonl").read_text() == before
    assert run(tiny.config("sft", trainer__max_steps=1), tmp_path / "alone") == 0
    with pytest.raises(UserError, match="has no stages"):
        run(settings(resume="auto"), tmp_path / "alone")


@pytest.mark.parametrize(
    ("stage", "changes", "key"),
    [
        ("few", {"data": {"source": "text", "path": "/none.jsonl"}}, "stages.few.data.path"),
        ("few", {"teacher": {"path": "/none", "config": None, "tokenizer": None}}, "stages.few.teacher.path"),
        ("wide", {"data": {"source": "text", "path": "/none.jsonl"}}, "stages.wide.data.path"),
    ],
)
def test_what_a_later_stage_lacks_is_said_before_the_first_begins(
    stage: str, changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    stages = STAGES | {stage: STAGES[stage] | changes}
    with pytest.raises(UserError) as caught:
        run(settings(stages=stages), tmp_path / "run")
    assert caught.value.key == key
    assert not (tmp_path / "run").exists()


def test_the_other_commands_take_the_directory_of_the_whole(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    assert evaluation.run(EvalConfig(checkpoint=str(straight), out=str(out)).model_dump(), tmp_path) == 0
    assert json.loads(out.read_text())["eval/accuracy"] == tiny.metrics(straight)[-1]["eval/accuracy"]
    with pytest.raises(UserError, match=r"one of its stages: .*1-wide, .*2-few"):
        export.run(
            {"network": "student", "checkpoint": str(straight), "out": str(tmp_path / "out"), "dtype": None}, tmp_path
        )


def test_bf16_is_handed_on_bit_by_bit(tmp_path: Path) -> None:
    assert run(settings(trainer__precision="bf16-true", callbacks__evaluation=None), tmp_path) == 0
    first, second = parts(tmp_path)
    assert {tensor.dtype for tensor in weights(second / TRAINED).values()} == {torch.bfloat16}
    assert same(second / "source/model.safetensors", first / TRAINED)


def test_lora_is_merged_between_stages(tmp_path: Path) -> None:
    assert run(settings(student__lora={"r": 2}, callbacks__evaluation=None), tmp_path) == 0
    first, second = parts(tmp_path)
    assert same(second / "source/model.safetensors", first / TRAINED)
    assert tiny.metrics(tmp_path)[-1]["update/relative_norm_fp32"] > 0
