"""Two nodes for the whole session, and jobs submitted to them through launch/slurm.py."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.slurm import cluster

ROOT = Path(__file__).parents[2]
STEPS = 12
TINY = (
    "recipe=opd",
    "student=llama_tiny",
    "student.config.hidden_size=16",
    "data.batch_size=4",
    "data.digits=2",
    "data.eval_size=4",
    "rollout.max_new_tokens=4",
    f"trainer.max_steps={STEPS}",
    "logger.progress=off",
)
SLOW = ("callbacks.extra.slow._target_=tests.slurm.slow.SlowRank", "callbacks.extra.slow.rank=1")
"""Rank 1 sleeps ``callbacks.extra.slow.seconds`` before every micro-batch."""
ENVIRONMENT = ("DISTILL_ALLOWED_TARGETS=tests.slurm", f"PYTHONPATH={ROOT}", "HF_HUB_OFFLINE=1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(600))


@dataclass
class Job:
    """A submitted job; ``number`` may be that of one task of an array, as in 7_0."""

    cluster: cluster.Cluster
    number: str
    runs: Path

    @property
    def run_dir(self) -> Path:
        return self.runs / f"distill-{self.number}"

    @property
    def output(self) -> str:
        return (self.runs / f"distill-{self.number}.out").read_text()

    def wait(self, *states: str, seconds: float = 400) -> dict[str, str]:
        return self.cluster.wait(self.number, *states, seconds=seconds)

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Waits until a step is in metrics.jsonl."""
        deadline = time.monotonic() + seconds
        while not (self.run_dir / "metrics.jsonl").exists() or tiny.metrics(self.run_dir)[-1]["step"] < step:
            fields = self.cluster.job(self.number)
            assert fields["JobState"] in ("PENDING", "RUNNING", "CONFIGURING"), f"{fields}\n{self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def signal(self, name: str) -> None:
        """To every task of the job, as SLURM does."""
        self.cluster.ask("scancel", f"--signal={name}", self.number)

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks, in order."""
        found = dict[int, psutil.Process]()
        for process in psutil.process_iter(["cmdline"]):
            if f"hydra.run.dir='{self.run_dir}'" in (process.info["cmdline"] or []) and "-m" in process.info["cmdline"]:
                environment = process.environ()
                if "srun" not in process.name():
                    found[int(environment["SLURM_PROCID"])] = process
        return [found[rank] for rank in sorted(found)]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.run_dir / "model" / "model.safetensors")

    def assert_equal_to(self, other: Job) -> None:
        """The same weights, bit by bit, and metrics without a gap or a double."""
        ours, theirs = self.weights(), other.weights()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        steps = [record["step"] for record in tiny.metrics(self.run_dir)]
        assert steps == list(range(STEPS + 1)), self.output


@dataclass
class Launcher:
    """Submits jobs of the tiny run."""

    cluster: cluster.Cluster
    runs: Path

    def submit(self, *overrides: str, options: tuple[str, ...] = ("--nodes=2",), slow: float | None = None) -> Job:
        """Through launch/slurm.py; with ``slow`` rank 1 takes so many seconds more for each step."""
        words = [*TINY, *overrides, *([*SLOW, f"callbacks.extra.slow.seconds={slow}"] if slow is not None else [])]
        common = [f"--runs={self.runs}", f"--python={sys.executable}", "--cpus-per-task=1", "--time=10"]
        variables = [f"--env={variable}" for variable in ENVIRONMENT]
        command = [sys.executable, str(ROOT / "launch" / "slurm.py"), *common, *variables, *options, "--", *words]
        done = subprocess.run(
            command, env=self.cluster.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return Job(self.cluster, done.stdout.strip(), self.runs)


@pytest.fixture(scope="session")
def nodes() -> Iterator[cluster.Cluster]:
    if names := cluster.missing():
        pytest.skip(f"{', '.join(names)} not installed: apt-get install {cluster.PACKAGES}")
    with cluster.started() as running:
        yield running


@pytest.fixture
def launcher(nodes: cluster.Cluster, tmp_path: Path) -> Launcher:
    return Launcher(nodes, tmp_path)


@pytest.fixture(scope="session")
def straight(nodes: cluster.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The run that nothing interrupts, on two nodes."""
    job = Launcher(nodes, tmp_path_factory.mktemp("straight")).submit(TRAINER)
    fields = job.wait("COMPLETED", "FAILED")
    assert fields["ExitCode"] == "0:0", job.output
    return job


TRAINER = "trainer=zero3"
