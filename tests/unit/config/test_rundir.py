import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill.config import rundir
from distill.errors import UserError


@pytest.mark.parametrize("name", ["DISTILL_RUN_ID", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_a_shared_id_is_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "77")
    assert rundir.run_id() == "77"


def test_our_own_variable_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_RUN_ID", "mine")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert rundir.run_id() == "mine"


def test_alone_it_is_the_time_this_process_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert re.fullmatch(r"\d{8}-\d{6}-\d+", rundir.run_id())
    assert rundir.run_id() == rundir.run_id()


def test_ranks_of_one_launcher_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code = "from distill.config.rundir import run_id; print(run_id())"
    ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = {rank.communicate()[0] for rank in ranks}
    assert len(ids) == 1
    assert ids != {rundir.run_id() + "\n"}, "this process is no rank, its own parent is another one"


def test_several_nodes_need_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="`DISTILL_RUN_ID` must be set"):
        rundir.run_id()
    monkeypatch.setenv("DISTILL_RUN_ID", "x")
    assert rundir.run_id() == "x"


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5"])
def test_world_size_has_to_be_a_count(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UserError, match="`WORLD_SIZE` must be a number of processes"):
        rundir.run_id()


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_new_run_gets_its_own_folder(monkeypatch: pytest.MonkeyPatch, resume: str | None) -> None:
    monkeypatch.setenv("DISTILL_RUNS", "/somewhere")
    monkeypatch.setenv("DISTILL_RUN_ID", "7")
    assert rundir.run_dir("opd", resume) == "/somewhere/opd-7"
    assert rundir.sweep_dir() == "/somewhere/sweep-7"


def test_a_resumed_run_stays_where_it_was(tmp_path: Path) -> None:
    step = tmp_path / "run" / "checkpoints" / "step-00000010"
    step.mkdir(parents=True)
    assert rundir.run_dir("opd", str(tmp_path / "run")) == str(tmp_path / "run")
    assert rundir.run_dir("opd", str(step)) == str(tmp_path / "run")


def test_a_checkpoint_that_was_copied_elsewhere_starts_a_new_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISTILL_RUN_ID", "7")
    assert rundir.run_dir("opd", str(tmp_path)).endswith("opd-7")


def test_job_folders_are_one_path_component_without_secrets() -> None:
    name = rundir.job_dir(3, "++seed=1,student.path=a/b,logger.api_key=abc")
    assert name == "3-seed-1_student.path-a_b_logger.api_key-_"
    assert len(rundir.job_dir(3, "x" * 300)) == 100
    assert rundir.job_dir(0, "") == "0"


def test_a_task_of_an_array_is_named_by_its_array(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_JOB_ID", "78"), ("SLURM_ARRAY_JOB_ID", "77"), ("SLURM_ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(name, value)
    assert rundir.run_id() == "77_3"
    monkeypatch.setenv("DISTILL_RUN_ID", "mine")
    assert rundir.run_id() == "mine"
