"""Sweeps and searches that are refused in one line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill import cli
from distill.commands import sweep, tune
from distill.errors import UserError
from distill.sweeps import job


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "-m", "seed=range(1,1)"], "at least one job"),
        (["train", "-m", "seed=1,2", "hydra.run.dir=x"], "`hydra.run.dir` must be left out with -m"),
        (["tune", "-m", "space={seed: [1, 2]}"], "`-m` must be left out"),
    ],
)
def test_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_launcher_that_takes_no_jobs_is_named() -> None:
    refused = type("FailedJobError", (Exception,), {})
    with pytest.raises(UserError, match=r"takes the jobs \(no sbatch\)"), sweep._launching("submitit_slurm"):
        raise refused("first\nno sbatch")


def test_a_metric_that_no_trial_has_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trial-000"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"loss": 1.0}\n')
    monkeypatch.setattr(job, "run", lambda one: SimpleNamespace(status="ok", error=None))
    study: Any = SimpleNamespace(ended=list, ask=lambda: SimpleNamespace(params={"seed": 1}))
    with pytest.raises(UserError, match="did you mean 'loss'"):
        tune._one(study, {"metric": "los", "overrides": [], "config_dir": None}, tmp_path)
