"""launch/slurm.py: what the batch script says, and that a shell reads it as meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "one node": (),
    "several nodes": ("--nodes=2", "--gpus-per-node=8"),
    "CPUs": ("--tasks-per-node=4", "--mem=0"),
    "Pyxis": ("--gpus-per-node=8", "--container-image=registry#image:1", "--mount=/data:/data"),
    "Apptainer": ("--gpus-per-node=8", "--apptainer=image.sif", "--mount=/data:/data"),
    "modules": ("--module=cuda/12.4", "--module=python", "--env=NCCL_SOCKET_IFNAME=ib0"),
    "seeds": ("--seeds=0,1,2",),
}
# Stands in for SLURM: srun shows what it was given and ends with status 3.
SLURM = """
export SLURM_JOB_ID=45 SLURM_ARRAY_JOB_ID=44 SLURM_ARRAY_TASK_ID=1 SLURMD_NODENAME=localhost
squeue() { echo "$STATE"; }
scontrol() { echo "scontrol: $*"; }
module() { echo "module: $*"; }
srun() { printf '<%s>\\n' "$@"; echo "addr=$MASTER_ADDR port=$MASTER_PORT"; return "$STATUS"; }
"""


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "slurm.py"), "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def execute(
    script: str, status: int = 0, state: str = "RUNNING", restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "STATUS": str(status), "STATE": state, "SLURM_RESTART_COUNT": str(restarts)}
    command = ["bash", "-c", SLURM + script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_a_script_that_starts_distill(options: tuple[str, ...]) -> None:
    shown = launch("--runs=/runs", *options, "--", "recipe=opd")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.endswith("\n# sbatch --parsable < SCRIPT\n")
    done = execute(shown.stdout)
    assert done.returncode == 0, done.stderr
    job = "44_1" if "--seeds=0,1,2" in options else "45"
    seed = ["<seed=1>"] if "--seeds=0,1,2" in options else []
    words = done.stdout.splitlines()
    start = words.index("<-m>")
    assert words[start - 1] == "<python>"
    assert words[start:-1] == [
        "<-m>",
        "<distill>",
        "<train>",
        *(["<trainer.accelerator=gpu>"] if any(option.startswith("--gpus") for option in options) else []),
        "<recipe=opd>",
        *seed,
        f"<hydra.run.dir='/runs/distill-{job}'>",
        "<resume=auto>",
    ]
    assert "port=10315" in words[-1]
    assert "addr= " not in words[-1]


def test_folders_with_special_characters_are_quoted() -> None:
    shown = launch("--runs=/data/me(1)/r&d", "--", "recipe=opd")
    done = execute(shown.stdout)
    assert done.returncode == 0, done.stderr
    assert "<hydra.run.dir='/data/me(1)/r&d/distill-45'>" in done.stdout
    word = next(line for line in done.stdout.splitlines() if "hydra.run.dir" in line).strip("<>")
    assert OverridesParser.create().parse_override(word).value() == "/data/me(1)/r&d/distill-45"


def test_containers_get_the_variables_that_an_image_may_set_too() -> None:
    options = ("--env=HF_HOME=/scratch/h f", "--runs=/runs")
    assert "--container-env=OMP_NUM_THREADS,HF_HOME" in launch("--container-image=x", *options).stdout
    show = "srun() { env; }\n"
    script = launch("--apptainer=x", "--env=NCCL_IB_HCA==a:1,b:1", "--cpus-per-task=3", *options).stdout
    given = execute(script.replace("set -euo pipefail", f"set -euo pipefail\n{show}")).stdout.splitlines()
    assert "APPTAINERENV_HF_HOME=/scratch/h f" in given
    assert "APPTAINERENV_NCCL_IB_HCA==a:1,b:1" in given
    assert "APPTAINERENV_OMP_NUM_THREADS=3" in given


def test_what_the_user_says_of_the_accelerator_comes_last() -> None:
    done = execute(launch("--gpus-per-node=1", "--", "trainer=zero3", "trainer.accelerator=auto").stdout)
    words = done.stdout.splitlines()
    assert words.index("<trainer.accelerator=gpu>") < words.index("<trainer.accelerator=auto>")


def test_the_port_changes_with_every_start_and_job() -> None:
    script = launch().stdout
    ports = {
        execute(text, restarts=restarts).stdout.split("port=")[1].split()[0]
        for text in (script, f"SLURM_JOB_ID=46\n{script}")
        for restarts in (0, 1)
    }
    assert ports == {"10315", "11324", "10322", "11331"}


def test_a_controller_that_does_not_answer_loses_no_job() -> None:
    script = launch("--runs=/runs", "--", "recipe=opd").stdout
    silent = "squeue() { return 1; }\nexport DISTILL_ASK_AGAIN=0\n"
    done = execute(silent + script, status=138)
    assert done.returncode == 138
    assert "requeueing job 45" in done.stdout
    lost = "scontrol() { return 1; }\nexport DISTILL_ASK_AGAIN=0\n"
    assert "is not requeued; run: scontrol requeue 45" in execute(lost + script, status=138).stderr


@pytest.mark.parametrize(("program", "status"), [("squeue", 138), ("scontrol", 138), ("scontrol", 143)])
def test_one_failure_of_a_client_loses_no_requeue(program: str, status: int, tmp_path: Path) -> None:
    """The stand-in fails when called first; at 143 it says that the job was preempted."""
    says = {"squeue": "echo RUNNING", "scontrol": 'echo "scontrol: $* PreemptTime=2026"'}[program]
    again = f"[[ -e {tmp_path}/called ]] || {{ touch {tmp_path}/called; return 1; }}"
    stub = f"{program}() {{ {again}; {says}; }}\nexport DISTILL_ASK_AGAIN=0 SLURM_JOB_END_TIME=1\n"
    done = execute(stub + launch().stdout, status)
    assert done.returncode == status
    assert "scontrol: requeue 45" in done.stdout
    assert (tmp_path / "called").exists()
    assert "is not requeued" not in done.stderr


def test_the_signal_of_the_requeue_does_not_end_scontrol() -> None:
    stub = "scontrol() { bash -c 'kill -TERM $$; echo survived'; }\nexport DISTILL_ASK_AGAIN=0\n"
    done = execute(stub + launch().stdout, 138)
    assert "survived" in done.stdout
    assert "is not requeued" not in done.stderr


def test_options_of_sbatch() -> None:
    options = ("--gpus-per-node=4", "--partition=a", "--account=b", "--qos=c", "--constraint=d&e", "--sbatch=--x=y")
    lines = launch(*options, "--seeds=7,8", "--time=1-00:00:00", "--signal-seconds=99", "--runs=/r").stdout.splitlines()
    assert [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")] == [
        *("--job-name=distill", "--nodes=1", "--ntasks-per-node=4", "--cpus-per-task=4", "--gres=gpu:4"),
        *("--time=1-00:00:00", "--partition=a", "--account=b", "--qos=c", "--constraint=d&e", "--array=0-1"),
        *(f"--chdir={ROOT}", "--output=/r/%x-%A_%a.out", "--open-mode=append", "--requeue", "--signal=USR1@99"),
        "--x=y",
    ]


@pytest.mark.parametrize("override", ["data.prompt={a} + $b; rm 'x' \"y\"", "data.system_prompt=`id` $(id)\n!"])
def test_overrides_reach_distill_as_they_are(override: str) -> None:
    done = execute(launch("--", override).stdout)
    assert f"<{override}>\n" in done.stdout


@pytest.mark.parametrize(
    ("status", "state", "restarts", "options", "requeued"),
    [
        (138, "RUNNING", 0, (), True),
        (124, "RUNNING", 99, (), True),
        (124, "RUNNING", 100, (), False),
        (138, "COMPLETING", 0, (), False),
        (143, "RUNNING", 0, (), False),
        (0, "RUNNING", 0, (), False),
        (1, "RUNNING", 0, (), False),
        (1, "RUNNING", 0, ("--retries=1",), True),
        (137, "RUNNING", 1, ("--retries=1",), False),
    ],
)
def test_which_jobs_go_back_to_the_queue(
    status: int, state: str, restarts: int, options: tuple[str, ...], requeued: bool
) -> None:
    done = execute(launch(*options).stdout, status, state, restarts)
    assert done.returncode == status
    assert ("scontrol: requeue 45" in done.stdout) == requeued


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--", "hydra.run.dir=x"), "hydra.run.dir is set by the script; leave it out (see --runs)"),
        (("--seeds=1,2", "--", "seed=3"), "seed is set by the script"),
        (("--gpus-per-node=2", "--tasks-per-node=2"), "--tasks-per-node is for CPU runs"),
        (("--nodes=0",), "'0' is no count"),
        (("--seeds=a",), "no list such as 0,1,2"),
        (("--env=1x=2",), "is not KEY=VALUE"),
        (("--partition=a b",), "characters that an #SBATCH line cannot take"),
        (("--name=$(id)",), "is no name of letters"),
        (("--name=a|id",), "is no name of letters"),
        (("--name=été",), "is no name of letters"),
        (("--runs=/data/100%",), "has one of % , : #"),
        (("--runs=/data/a,b",), "has one of % , : #"),
        (("--runs=/data/a:b",), "has one of % , : #"),
        (("--runs=/data/a#b",), "has one of % , : #"),
        (("--apptainer=a", "--container-image=b"), "not allowed with argument"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], reason: str) -> None:
    done = launch(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
