"""The command line from outside: exit statuses, what is printed where, and what is not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import distill
from distill import cli
from distill.errors import RunError, UserError
from distill.sweeps import job

REPORT = ["report", "runs=[a]"]


class Stub:
    """Stands for a command's module; ``run`` records its calls and does what it is told."""

    def __init__(self, outcome: Any = 0) -> None:
        self.outcome, self.calls = outcome, list[tuple[dict[str, Any], Path]]()

    def run(self, config: dict[str, Any], run_dir: Path) -> int:
        self.calls.append((config, run_dir))
        outcome = self.outcome(config) if callable(self.outcome) else self.outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return int(outcome)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(command: str, outcome: Any = 0) -> Stub:
        made = Stub(outcome)
        monkeypatch.setitem(sys.modules, f"distill.commands.{command}", SimpleNamespace(run=made.run))
        return made

    return install


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines on stderr of a command line that is a user's mistake."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.splitlines()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"distill {distill.__version__}\n"
    for arguments in (["--help"], ["-h"], ["list", "--help"], ["validate", "--help"]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(command in out for command in cli.COMMANDS)


def test_no_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys)[0].startswith("distill ")
    [line] = fails(capsys, "trian")
    assert line.startswith("error: `COMMAND` must be one of train,")
    assert "did you mean 'train'?" in line


def test_help_of_a_command_names_groups_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "recipe: kd_variance, multi_teacher, offline_kd, online_adm, online_kd, online_lora, opd, self_dist" in out
    assert "divergence: reverse_kl" in out


def test_cfg_job_prints_every_key_with_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--cfg", "job", "recipe=sft", "seed=3"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["seed"], shown["run_name"]) == (3, "sft")
    assert set(shown) == {*distill.config.schema.TrainConfig.model_fields}


def test_list_names_every_option_with_its_description(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "recipe:"
    assert any(line.split()[:2] == ["opd", "On-policy"] for line in lines)
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# Mine alone.\n{}\n")
    assert cli.main(["list", "recipe", "--config-dir", str(tmp_path)]) == 0
    assert "  mine                 Mine alone." in capsys.readouterr().out.splitlines()
    assert "one of recipe, experiment" in fails(capsys, "list", "recipes")[0]


def test_validate_says_ok_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "recipe=sft", "trainer=ddp"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("ok: ")
    assert "recipe=sft" in line
    assert cli.main(["validate", "-m", "seed=1,2", "recipe=opd,sft"]) == 0
    assert capsys.readouterr().out == "ok: 4 runs\n"


def test_a_student_of_ones_own_gets_the_schemas_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "student.path=mine"]) == 0
    assert "student=path" in capsys.readouterr().out
    assert cli.main(["train", "student.path=mine", "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["student"]["path"], shown["optimizer"]["lr"], shown["rollout"]["max_new_tokens"]) == (
        "mine",
        1e-5,
        256,
    )


@pytest.mark.parametrize("command", ["validate", "train"])
def test_mistakes_are_one_line_each(capsys: pytest.CaptureFixture[str], command: str) -> None:
    lines = fails(capsys, command, "+typo=1", "seed=x", "recipe=opdd")
    assert [line.split("`")[1] for line in lines] == ["recipe", "seed", "typo"]
    assert all(line.startswith("error: `") for line in lines)


def test_a_command_gets_plain_values_and_its_folder(stub: Any, tmp_path: Path) -> None:
    made = stub("train")
    assert cli.main(["train", "seed=3", f"hydra.run.dir={tmp_path}/run"]) == 0
    [(config, run_dir)] = made.calls
    assert config["seed"] == 3
    assert type(config["optimizer"]) is dict
    assert type(config["optimizer"]["betas"]) is list
    assert run_dir == tmp_path / "run"
    assert list(run_dir.iterdir()) == [], "Hydra leaves nothing of its own there"


def test_a_run_directory_is_made_up_from_recipe_and_id(
    stub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = stub("train")
    monkeypatch.setenv("DISTILL_RUNS", str(tmp_path))
    monkeypatch.setenv("DISTILL_RUN_ID", "7")
    assert cli.main(["train", "recipe=sft"]) == 0
    assert made.calls[0][1] == tmp_path / "sft-7"


def test_resume_continues_in_the_same_directory(stub: Any, tmp_path: Path) -> None:
    made = stub("train")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    assert cli.main(["train", f"resume={checkpoint}"]) == 0
    assert cli.main(["train", f"resume={tmp_path}/run", f"hydra.run.dir={tmp_path}/other"]) == 0
    assert [run_dir for _, run_dir in made.calls] == [tmp_path / "run", tmp_path / "other"]


def test_a_mistake_leaves_no_run_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fails(capsys, "train", "seed=x", f"hydra.run.dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_several_nodes_without_an_id_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    [line] = fails(capsys, "train", "trainer=ddp_cpu")
    assert line.startswith("[rank 0] error: `DISTILL_RUN_ID` must be set")


def test_a_sweep_under_a_launcher_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "`-m` must be left out under torchrun or srun" in fails(capsys, "train", "-m", "seed=1,2")[0]
    assert "`-m` must be left out under torchrun or srun" in fails(capsys, "train", "hydra.mode=MULTIRUN")[0]


@pytest.mark.parametrize("flag", ["--config-name", "--config-path", "--experimental-rerun"])
def test_flags_that_would_bypass_the_schema_are_refused(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert fails(capsys, "train", flag, "x") == [
        f"error: `{flag}` must be left out (--config-dir adds groups), but is 'x'."
    ]


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (143, 143, ""),
        (
            UserError("data.path", "/x", "an existing folder"),
            2,
            "error: `data.path` must be an existing folder, but is '/x'.\n",
        ),
        (RunError("the disk is full"), 1, "error: the disk is full\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_exit_statuses(capsys: pytest.CaptureFixture[str], stub: Any, outcome: Any, status: int, text: str) -> None:
    stub("report", outcome)
    assert cli.main(REPORT) == status
    assert capsys.readouterr().err == text


def test_a_fault_of_ours_shows_its_traceback_without_secrets(
    capsys: pytest.CaptureFixture[str], stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "planted-in-environment")
    stub("report", RuntimeError("boom planted-in-environment"))
    assert cli.main(REPORT) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "RuntimeError: boom ***" in err
    assert "planted" not in err


def test_full_error_shows_the_traceback_of_a_mistake_too(
    capsys: pytest.CaptureFixture[str], stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    stub("report", UserError("out", 1, "a file"))
    for arguments in (REPORT, ["train", "seed=x"]):
        assert cli.main(arguments) == 2
        assert "Traceback" in capsys.readouterr().err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_the_environment_and_arguments_are_left_as_they_were(stub: Any) -> None:
    argv = list(sys.argv)
    seen = []
    stub("report", lambda config: seen.append(list(sys.argv)) or 0)
    assert cli.main(REPORT) == 0
    assert seen == [argv]
    assert sys.argv == argv
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_sweep_writes_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job, "PROGRAM", (sys.executable, "-c", "0"))
    words = ["data=reasoning_gym", "data.task=x", "data.options.api_key=planted-value", "seed=0,1"]
    assert cli.main(["train", "-m", *words, f"hydra.sweep.dir={tmp_path}/sweep"]) == 0
    written = (tmp_path / "sweep" / "multirun.yaml").read_text()
    assert yaml.safe_load(written)["data"]["options"] == {"api_key": "***"}
    texts = [path.read_text() for path in (tmp_path / "sweep").rglob("*") if path.is_file()]
    assert len(texts) > 4
    assert "planted-value" not in "".join(texts)
    assert "planted-value" not in str(sorted(tmp_path.rglob("*")))
    assert "planted-value" not in capsys.readouterr().out


HEAVY = ["torch", "lightning", "transformers", "deepspeed", "datasets", "wandb", "pyarrow", "pandas", "numpy"]
CODE = f"""
import sys
from distill.cli import main
status = main(sys.argv[1:])
print('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["train", "--cfg", "job"], 0),
        (["list"], 0),
        (["validate"], 0),
        (["train", "+typo=1"], 2),
    ],
)
def test_nothing_heavy_is_imported_to_answer(arguments: list[str], status: int) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1] == "HEAVY"


def test_python_m_distill_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distill", "train", "seed=x"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: `seed` must be a whole number, but is 'x'.\n"


def test_a_closed_pipe_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "distill", "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
