"""One thread per process, no network, and an environment without a launcher's variables or anybody's secrets."""

import os

import pytest

# Before torch, tokenizers and wandb are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
OURS = ("DISTILL_RUNS", "DISTILL_RUN_ID", "DISTILL_ALLOWED_TARGETS", "HYDRA_FULL_ERROR")
SLURM = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_END_TIME")
for name in (*LAUNCHER, *OURS, *SLURM, "WANDB_API_KEY", "WANDB_MODE", "HF_TOKEN"):
    os.environ.pop(name, None)

from tests import pictures as drawing  # noqa: E402

drawing.leave_out()


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have their pictures in this test, as they have outside of tests."""
    monkeypatch.setattr(drawing, "drawn", True)


@pytest.fixture(autouse=True)
def _environment_restored(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A run that a test starts without naming its directory lands in a temporary folder."""
    monkeypatch.setenv("DISTILL_RUNS", str(tmp_path_factory.getbasetemp() / "runs"))
