"""Sweeps with every launcher, and what is left when jobs fail, are killed or interrupted."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distill import cli
from distill.sweeps import job
from tests import tiny

FAKE = (sys.executable, str(Path(tiny.__file__).with_name("fake_job.py")))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "PROGRAM", FAKE)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # Otherwise the one that submitit sets for its jobs would stay.
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")


def sweep(home: Path, *words: str) -> int:
    return cli.main(["train", "-m", *words, f"hydra.sweep.dir={home}"])


def jobs(home: Path) -> list[dict[str, Any]]:
    return list(json.loads((home / "sweep.json").read_text())["jobs"])


def starts(folder: Path) -> list[tuple[list[str], dict[str, str | None]]]:
    return [json.loads(line) for line in (folder / "started").read_text().splitlines()]


LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_failing_and_killed_jobs_do_not_stop_the_others(
    launcher: str, fake: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / "s", *LAUNCHERS[launcher], "recipe=opd,sft", "seed=1,3,4", "data.eval_size=4") == 1
    found = jobs(tmp_path / "s")
    assert [entry["status"] for entry in found] == ["ok", "failed", "failed"] * 2
    assert [entry["metric"] for entry in found[:2]] == [{"loss": 0.01}, {}]
    assert [entry["exit_status"] for entry in found[:3]] == [0, 1, -9]
    assert found[1]["error"] == "error: this seed fails"
    assert found[2]["error"].startswith("killed by SIGKILL")
    assert [Path(entry["dir"]).name for entry in found[:2]] == ["0-seed-1_recipe-opd", "1-seed-3_recipe-opd"]
    lines = capfd.readouterr().out.splitlines()
    [row] = [line.split() for line in lines if line.startswith("4 ")]
    assert row == ["4", "failed", "–", "recipe=sft", "seed=3", "4-seed-3_recipe-sft"]
    words, environment = starts(Path(found[0]["dir"]))[0]
    assert {"recipe=opd", "seed=1", "data.eval_size=4", "logger.group=s"} <= set(words)
    assert not any("launcher" in word or "sweep" in word for word in words if not word.startswith("hydra.run.dir"))
    assert environment["HYDRA_FULL_ERROR"] != "1"


def test_jobs_that_share_a_machine_share_its_cores(fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    for launcher, threads in {"joblib": "6", "submitit_local": "4", "basic": None}.items():
        home = tmp_path / launcher
        assert sweep(home, *LAUNCHERS[launcher], "seed=0,1,2") == 0
        assert [starts(Path(entry["dir"]))[0][1]["OMP_NUM_THREADS"] for entry in jobs(home)] == [threads] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert sweep(tmp_path / "mine", *LAUNCHERS["joblib"], "seed=0,1") == 0
    assert starts(Path(jobs(tmp_path / "mine")[0]["dir"]))[0][1]["OMP_NUM_THREADS"] == "5"


def test_a_job_of_several_ranks(fake: None, tmp_path: Path) -> None:
    words = [*LAUNCHERS["submitit_local"], "hydra.launcher.tasks_per_node=2", "trainer=ddp_cpu", "seed=1,3"]
    assert sweep(tmp_path, *words) == 1
    good, bad = jobs(tmp_path)
    assert (good["status"], bad["status"]) == ("ok", "failed")
    assert bad["rerun"].startswith("torchrun --standalone --nproc-per-node=2 -m distill train trainer=ddp_cpu seed=3")
    environments = [environment for _, environment in starts(Path(good["dir"]))]
    assert sorted(str(environment["RANK"]) for environment in environments) == ["0", "1"]
    assert {environment["WORLD_SIZE"] for environment in environments} == {"2"}
    assert len({environment["MASTER_PORT"] for environment in environments}) == 1
    assert (Path(good["dir"]) / "output-1.log").exists()


def test_a_sweep_goes_on_with_what_is_not_done(fake: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, "seed=1,3") == 1
    again = capsys.readouterr().out.split("all that are not ok: ")[1].splitlines()[0]
    assert cli.main(shlex.split(again)[1:]) == 1
    done, failed = (Path(entry["dir"]) for entry in jobs(tmp_path))
    assert (len(starts(done)), len(starts(failed))) == (1, 2)
    assert "resume=auto" in starts(failed)[1][0]
    assert sweep(tmp_path, "seed=1,3") == 2
    assert "`hydra.sweep.dir` must be a new folder" in capsys.readouterr().err
    assert sweep(tmp_path, "seed=1,2", "resume=auto") == 2


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_signal_lets_the_running_jobs_save_and_starts_no_others(launcher: str, fake: None, tmp_path: Path) -> None:
    def send() -> None:
        while not list(tmp_path.glob("*/waiting")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    extra = ["hydra.launcher.n_jobs=1"] if launcher == "joblib" else []
    assert sweep(tmp_path, *LAUNCHERS[launcher][:1], *extra, "seed=1,5,2") == 143
    thread.join()
    assert [entry["status"] for entry in jobs(tmp_path)] == ["ok", "interrupted", "pending"]
    assert (Path(jobs(tmp_path)[1]["dir"]) / "saved").exists()
    assert sweep(tmp_path, *LAUNCHERS[launcher][:1], *extra, "seed=1,5,2", "resume=auto") == 0


def test_sweeps_of_the_package_and_keys_that_outrank_them(fake: None, tmp_path: Path) -> None:
    assert sweep(tmp_path, "sweep=recipes", "seed=7") == 0
    found = [starts(Path(entry["dir"]))[0][0] for entry in jobs(tmp_path)]
    assert [words[2:0:-1] for words in found] == [["seed=7", f"recipe={name}"] for name in ("opd", "offline_kd", "sft")]


def test_the_printed_command_runs_the_job_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, with the learning rate put right; nothing else differs from the job that went well."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    sizes = ["student=llama_tiny", "recipe=sft", "trainer.max_steps=2", "data.eval_size=4", "data.batch_size=4"]
    code = [sys.executable, "-m", "distill", "train", "-m", *sizes, "optimizer.lr=1e-3,1e30", "hydra.sweep.dir=s"]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    good, bad = jobs(tmp_path / "s")
    assert good["status"] == "ok"
    assert good["metric"].keys() == {"eval/accuracy"}
    assert "NaN or infinity" in bad["error"]
    assert f"again: {bad['rerun']}" in done.stdout
    command = [sys.executable, "-m", *shlex.split(bad["rerun"].replace("optimizer.lr=1e+30", "optimizer.lr=1e-3"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = (Path(entry["dir"]) / "model" / "model.safetensors" for entry in (bad, good))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=range(1,1)"], "a sweep of at least one job"),
        (["seed=1,2", "hydra.run.dir=x"], "`hydra.run.dir` must be left out with -m"),
    ],
)
def test_words_that_make_no_sweep_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / "s", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_launcher_that_takes_no_job_is_named(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import submitit

    def refused(*_: Any, **__: Any) -> None:
        raise submitit.core.utils.FailedJobError("sbatch: trying\nsbatch: error: no such partition")

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", refused)
    assert sweep(tmp_path / "s", "seed=1,2", "hydra/launcher=submitit_local") == 2
    assert "`hydra/launcher` must be one that takes the jobs (sbatch: error: no such partition)" in (
        capsys.readouterr().err
    )
