"""``distill tune``: what is refused before anything starts, failed trials, and a search that is killed and resumed."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from distill import cli
from distill.sweeps import job
from tests import tiny

FAKE = (sys.executable, str(Path(tiny.__file__).with_name("fake_job.py")))
SPACE = "space={optimizer.lr: {low: 1e-4, high: 1, log: true}, recipe: [opd, sft]}"
CODE = (
    f"import sys; from distill import cli; from distill.sweeps import job; job.PROGRAM = {FAKE!r}; sys.exit(cli.main())"
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "PROGRAM", FAKE)


def tune(home: Path, *words: str) -> int:
    return cli.main(["tune", "metric=loss", "direction=minimize", *words, f"hydra.run.dir={home}"])


def study(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / "study.json").read_text()))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["space={optimizer.lrr: [1]}"], "`optimizer.lrr` must be a known key (did you mean `optimizer.lr`?"),
        (
            ["space={recipe: [opd, sftt]}"],
            "`recipe` must be one of kd_variance, multi_teacher, offline_kd, online_adm, online_kd, online_lora, opd, "
            "self_distillation, sft, speculative_kd, subnetwork, two_stage (did you mean 'sft'?)",
        ),
        (["space={optimizer.lr: {low: 0, high: 1}}"], "`optimizer.lr` must be greater than 0, but is 0."),
        (["space={optimizer.lr: {low: 1, high: 1e-3}}"], "`space.optimizer.lr` must be a range whose low is below"),
        (["space={seed: []}"], "`space.seed` must be a list of at least one value"),
        (["space={}"], "`space` must be at least one key"),
        ([SPACE, "optimizer.lr=1"], "`optimizer.lr` must be left out of the overrides"),
        ([SPACE, "trails=3"], "`trails` must be a known key (did you mean `trials`?"),
        ([SPACE, "trials=0"], "`trials` must be greater than 0"),
        ([SPACE, "trainer.max_stps=3"], "`trainer.max_stps` must be a known key"),
        ([], "`space` must be given"),
        ([SPACE, "-m"], "`-m` must be left out: tune starts its trials itself"),
    ],
)
def test_mistakes_are_said_before_anything_starts(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path / "study", *words) == 2
    assert f"error: {expected}" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_search_ends_with_its_best_command_line(
    fake: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path, "space={optimizer.lr: [1, 0.02], seed: [1, 3]}", "trials=8", "data.eval_size=4") == 0
    out = capsys.readouterr().out
    found = study(tmp_path)
    assert len(found["trials"]) == 8
    assert {trial["status"] for trial in found["trials"]} == {"ok", "failed"}
    for trial in found["trials"]:
        assert (trial["status"] == "failed") == (trial["params"]["seed"] == 3)
        assert trial["reason"] == ("error: this seed fails" if trial["status"] == "failed" else None)
    command = "distill train data.eval_size=4 optimizer.lr=0.02 seed=1"
    assert found["best"]["command"] == command
    assert found["best"]["value"] == pytest.approx(0.01)
    assert f"  {command}\n" in out
    assert shlex.split(found["best"]["command"])[0] == "distill"


def test_a_search_without_a_value_fails(fake: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path, "space={seed: [1, 2]}", "trials=1", "metric=nothing") == 2
    assert "`metric` must be a key of metrics.jsonl" in capsys.readouterr().err
    assert tune(tmp_path, "space={seed: [1, 2]}") == 2
    assert "resume=auto to go on with the study" in capsys.readouterr().err
    with FileLock(tmp_path / ".lock"):
        assert tune(tmp_path, "space={seed: [1, 2]}", "trials=1", "metric=nothing", "resume=auto") == 2
    assert "a study that no other process is running" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_search_repeats_no_finished_trial(number: signal.Signals, fake: None, tmp_path: Path) -> None:
    words = ["space={optimizer.lr: {low: 1e-4, high: 1, log: true}}", "trials=3", "sampler_seed=2"]
    command = [sys.executable, "-c", CODE, "tune", "metric=loss", "direction=minimize", *words]
    # The seed makes the first trial wait; on resume it goes on, and the others do not wait.
    process = subprocess.Popen([*command, "seed=5", f"hydra.run.dir={tmp_path}/killed"], start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "trial-000" / "waiting").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    (tmp_path / "killed" / "hurry").touch()
    assert tune(tmp_path / "killed", *words, "seed=5", "resume=auto") == 0
    # An orphan was told to stop before its directory was used again.
    assert (tmp_path / "killed" / "trial-000" / "saved").exists()
    assert len((tmp_path / "killed" / "trial-000" / "started").read_text().splitlines()) == 2
    found = study(tmp_path / "killed")["trials"]
    assert tune(tmp_path / "killed", *words, "seed=5", "resume=auto") == 0
    assert study(tmp_path / "killed")["trials"] == found
    assert [trial["status"] for trial in found] == ["ok"] * 3
    assert len(list((tmp_path / "killed").glob("trial-*"))) == 3
