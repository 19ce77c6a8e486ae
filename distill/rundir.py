"""The run directory: what a run leaves behind, and how it is opened anew or continued."""

from __future__ import annotations

import json
import logging
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from distill import checkpoint, distributed
from distill.callbacks import geometry, jsonl, rollouts, snapshots, sparsity
from distill.config.flat import flat
from distill.config.redact import redact
from distill.errors import UserError
from distill.models.base import Network
from distill.models.export import save

log = logging.getLogger(__name__)

SPARSITY, GEOMETRY, EXTRAPOLATION = "sparsity", "geometry", "extrapolation"
"""The folders of ``callbacks.sparsity`` (tables, snapshots), of ``callbacks.geometry`` (tables, directions) and of
``callbacks.extrapolation`` (snapshots)."""
ONLINE = "online"
"""The folder of networks trained together with the student; each has ``source/``, ``sparsity/``, ``model/`` by name."""
STAGES = "stages"
"""The folder of a run's stages, each a run directory (``distill.chain``)."""
PACKAGES = ("distill", "torch", "lightning", "transformers", "tokenizers", "safetensors", "peft", "hydra-core", "wandb")


def refuse_overwriting(run_dir: Path, resume: checkpoint.Checkpoint | None, asked: str | None) -> None:
    """A fresh run needs an empty directory; ``asked`` is the key ``resume``.

    Raises:
        UserError: another run's records would be overwritten.
    """
    metrics = run_dir / jsonl.FILE
    if resume is None and asked is None and metrics.exists():
        raise UserError("hydra.run.dir", str(run_dir), "a new folder (or pass resume=auto to continue the run in it)")
    if (run_dir / STAGES).exists():
        raise UserError("hydra.run.dir", str(run_dir), "a new folder: the run in it has stages")
    if resume is None and (run_dir / "model").exists():
        raise UserError("resume", asked, f"null and hydra.run.dir new: {run_dir} is finished, no checkpoints")
    others = resume is None or resume.folder.resolve().parent.parent != run_dir.resolve()
    if others and not metrics.exists() and checkpoint.latest(run_dir) is not None:
        allowed = "a new folder (or pass resume=auto: there are checkpoints in it)"
        raise UserError("hydra.run.dir", str(run_dir), allowed)
    if resume is not None and metrics.exists() and others:
        allowed = f"a new folder, or the run directory that {resume.folder} belongs to"
        raise UserError("hydra.run.dir", str(run_dir), allowed)


def open_run(run_dir: Path, config: dict[str, Any], resume: checkpoint.Checkpoint | None) -> None:
    """Prepares the directory: a resumed run loses what came after its checkpoint, so all it needs has been loaded."""
    if resume is not None:
        _tell_changes(run_dir / "config.yaml", redact(config))
    run_dir.mkdir(parents=True, exist_ok=True)
    last_step = -1 if resume is None else resume.step
    for name in (jsonl.FILE, "samples.jsonl", rollouts.FILE):
        jsonl.truncate(run_dir / name, last_step)
    for folder in _measured(run_dir):
        sparsity.forget_after(folder, last_step)
    snapshots.forget_after(run_dir / EXTRAPOLATION, last_step)
    if resume is not None:
        checkpoint.forget_after(run_dir, last_step)
        if resume.run_dir != run_dir.resolve():
            for theirs in _measured(resume.run_dir):
                sparsity.adopt(run_dir / theirs.relative_to(resume.run_dir), theirs, last_step)
            snapshots.adopt(run_dir / EXTRAPOLATION, resume.run_dir / EXTRAPOLATION, last_step)
            geometry.adopt(run_dir / GEOMETRY, resume.run_dir / GEOMETRY, last_step)
    _record(run_dir, config)


def _measured(run_dir: Path) -> list[Path]:
    """Folders of ``callbacks.sparsity``: the student's, and those of networks trained with it."""
    return [run_dir / SPARSITY, *(run_dir / ONLINE).glob(f"*/{SPARSITY}")]


def describe(run_dir: Path, config: dict[str, Any]) -> None:
    """Opens a directory that stands for several runs inside of it: says what they are."""
    _tell_changes(run_dir / "config.yaml", redact(config))
    run_dir.mkdir(parents=True, exist_ok=True)
    _record(run_dir, config)


def _record(run_dir: Path, config: dict[str, Any]) -> None:
    _write(run_dir / "config.yaml", yaml.safe_dump(redact(config), sort_keys=False, allow_unicode=True))
    _write(run_dir / "environment.json", json.dumps(redact(environment()), indent=2))


def check_shared(run_dir: Path) -> None:
    """Every rank sees the folder that rank 0 has opened. A collective.

    Raises:
        UserError: a rank does not (a folder of each node); on that rank.
    """
    sign = run_dir / f".shared-{distributed.gather_objects(secrets.token_hex(8))[0]}"
    if distributed.rank() == 0:
        sign.touch()
    distributed.barrier()
    seen = distributed.gather_objects(sign.exists())
    if distributed.rank() == 0:
        sign.unlink()
    if not all(seen):
        allowed = f"a folder that all ranks share (rank {seen.index(False)} does not see what rank 0 writes)"
        raise UserError("hydra.run.dir", str(run_dir), allowed)


def environment() -> dict[str, Any]:
    """Versions, git revision and hardware of this process."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": _git_revision(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def keep_source(run_dir: Path, lm: Network, cotrained: Mapping[str, Network], resumed: bool) -> None:
    """Saves θ₀, the student before training, to ``source/``, and that of networks trained with it to
    ``online/NAME/source/``; a resumed run keeps the ones it began with."""
    for folder, network in {run_dir: lm, **{run_dir / ONLINE / name: one for name, one in cotrained.items()}}.items():
        source = folder / "source"
        if not (resumed and source.exists()):
            save(network, source)


def _tell_changes(recorded: Path, config: dict[str, Any]) -> None:
    if not recorded.exists():
        return
    try:
        before = dict(flat(yaml.safe_load(recorded.read_text(encoding="utf-8"))))
    except (ValueError, yaml.YAMLError):
        log.warning("%s is not readable: nobody can say whether settings have changed", recorded)
        return
    now = dict(flat(yaml.safe_load(yaml.safe_dump(config))))
    for key in sorted((before.keys() | now.keys()) - {"resume"}):
        if before.get(key) != now.get(key):
            log.warning("resumed with another `%s`: %r instead of %r", key, now.get(key), before.get(key))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def wandb_id(run_dir: Path) -> str | None:
    """The W&B run id of this run directory, the same for every attempt; None on ranks that do not log."""
    if distributed.rank() != 0:
        return None
    path = run_dir / "wandb" / "run-id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")
