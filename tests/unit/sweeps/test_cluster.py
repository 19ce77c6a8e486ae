import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
from omegaconf import OmegaConf

from distill.commands import compose, overrides, sweep
from distill.config.validate import ConfigError
from distill.sweeps import cluster, job, record

SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "trainer=ddp_cpu"]


def test_ranks_of_a_job_are_checked_before_it_is_submitted() -> None:
    assert len(compose.check("train", [*SLURM, "seed=1,2"], multirun=True)) == 2
    with pytest.raises(ConfigError, match=r"`data\.batch_size` must be a multiple of the number of processes"):
        compose.check("train", [*SLURM, "hydra.launcher.nodes=3", "data.batch_size=16", "seed=1,2"], multirun=True)
    with pytest.raises(ConfigError, match="'ddp' or 'zero…' when a launcher starts 2 processes"):
        compose.check("train", [*SLURM, "trainer=cpu", "seed=1,2"], multirun=True)
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.tasks_per_node=2; or, job by job, torchrun"):
        compose.check("train", ["trainer=ddp_cpu", "seed=1,2"], multirun=True)


def test_a_launcher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"`hydra/launcher` must be .*pip install 'distill\[sweep\]'.* but is 'joblib'"
    ):
        compose.check("train", ["hydra/launcher=joblib", "seed=1,2"], multirun=True)


def test_a_job_of_slurm_is_run_again_by_srun() -> None:
    options = OmegaConf.create({"nodes": 2, "tasks_per_node": 4, "timeout_min": 9, "partition": "p", "qos": None})
    assert sweep._program("submitit_slurm", options) == (
        *("srun", "--nodes=2", "--ntasks-per-node=4", "--time=9", "--partition=p"),
        "distill",
    )


def test_the_batch_file_of_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/bin/srun")
    monkeypatch.setattr(submitit.slurm.slurm.SlurmJobEnvironment, "USR_SIG", "USR1")
    [composed] = compose.check("train", [*SLURM, "hydra.launcher.partition=p", "seed=1"], multirun=True)
    config, _, _ = compose.sweep_jobs("train", [*SLURM, "hydra.launcher.partition=p", "seed=1"], None)
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
    keys = {"timeout_min": "timeout_min", "tasks_per_node": "tasks_per_node", "nodes": "nodes"}
    executor.update_parameters(**{key: config.hydra.launcher[name] for key, name in keys.items()}, slurm_partition="p")
    text = executor._executor._make_submission_file_text("COMMAND", "id")
    assert composed.config["trainer"]["strategy"] == "ddp"
    for line in ("--ntasks-per-node=2", "--partition=p", "--time=60"):
        assert f"#SBATCH {line}" in text
    assert "#SBATCH --signal=USR1@" in text


@pytest.mark.parametrize(
    ("status", "rank", "restarts", "asked"),
    [(138, 0, "0", True), (124, 0, "3", True), (138, 1, "0", False), (143, 0, "0", False), (138, 0, "100", False)],
)
def test_one_rank_requeues_what_stopped_for_lack_of_time(
    status: int, rank: int, restarts: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, slept = list[Any](), list[float]()
    monkeypatch.setattr(subprocess, "run", lambda words, **_: calls.append(words) or SimpleNamespace(returncode=0))
    monkeypatch.setattr(cluster.time, "sleep", slept.append)
    cluster.requeue(status, rank)
    assert (calls, slept) == ([], [])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    cluster.requeue(status, rank)
    assert calls == ([["scontrol", "requeue", "7"]] if asked else [])
    assert slept == [cluster.END_SECONDS]


def test_a_task_of_an_array_requeues_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[Any]()
    monkeypatch.setattr(subprocess, "run", lambda words, **_: calls.append(words) or SimpleNamespace(returncode=0))
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    for name, value in {"JOB_ID": "7", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2", "RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    cluster.requeue(138, rank=0)
    assert calls == [["scontrol", "requeue", "7_2"]]


def test_a_lost_job_is_no_end_of_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Any) -> list[Any]:
        raise submitit.core.utils.UncompletedJobError("gone")

    monkeypatch.setattr(submitit.core.core.Job, "results", lost)
    with cluster.outlasting():
        [result] = submitit.core.core.Job.results(SimpleNamespace())
        assert result.return_value is None
    assert submitit.core.core.Job.results is lost


def test_a_job_is_over_when_it_left_the_queue_for_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = SimpleNamespace(result_pickle=tmp_path / "result")
    asked = SimpleNamespace(job_id="7", num_tasks=1, task=lambda number: SimpleNamespace(paths=paths))
    answers = [(0, "RUNNING", ""), (1, "", "slurm_load_jobs error: Unable to contact slurm controller")]
    ended = (1, "", "slurm_load_jobs error: Invalid job id specified")
    monkeypatch.setattr(cluster, "GRACE_SECONDS", 0)
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)

    def squeue(*_: Any, **__: Any) -> SimpleNamespace:
        status, out, error = answers.pop(0) if answers else ended
        return SimpleNamespace(returncode=status, stdout=out, stderr=error)

    monkeypatch.setattr(subprocess, "run", squeue)
    assert not cluster._ended(asked)
    assert answers == []
    paths.result_pickle.touch()
    assert cluster._ended(asked)


def test_exit_statuses_of_jobs() -> None:
    statuses = {0: "ok", 1: "failed", 2: "failed", -9: "failed", 124: "interrupted", 143: "interrupted"}
    statuses |= {-signal.SIGTERM: "interrupted", 128 + signal.SIGUSR1: "interrupted"}
    assert {code: job._status(code) for code in statuses} == statuses


@pytest.mark.parametrize(
    "value", ["plain", "runs/a-b", "a=b", "a,b", 'a"b', "a\\b", 'a\\"b', "a b\\", "", "x y", "${x}", "[1]"]
)
def test_quoted_values_are_taken_literally(value: str) -> None:
    with compose.session() as loader:
        [good], problems = overrides.parse([job.quoted("run_name", value)], loader, [], multirun=False)
    assert problems == []
    assert good.value() == value


def test_a_job_whose_process_is_gone_was_interrupted(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    entry = record.Record(0, ["seed=1"], str(tmp_path / "0"), "", status="running", pid=process.pid, host="elsewhere")
    record.open_sweep(tmp_path, {}, [record.Record(0, ["seed=1"], "", "")])
    record.write(tmp_path, entry)
    assert record.update(tmp_path)[0].status == "running"
    record.write(tmp_path, record.replace(entry, host=record.socket.gethostname()))
    assert record.update(tmp_path)[0].status == "interrupted"
