"""``distill export checkpoint=PATH out=DIR``: a Hugging Face folder from a cold checkpoint of any strategy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from distill import checkpoint, tasks, universal
from distill.config.schema import Student
from distill.errors import UserError
from distill.models.export import save
from distill.models.lora import merged
from distill.models.tokenizers import one_line
from distill.quiet import quiet_libraries
from distill.rundir import ONLINE

KEY = "checkpoint"


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Verifies the checkpoint, then writes its student, or another ``network`` that was trained with it, to ``out``:
    masters where there are, LoRA merged, tokenizer.

    Needs the run directory around the checkpoint (``source/`` and ``config.yaml``), but neither a GPU nor processes.

    Raises:
        UserError: the checkpoint is damaged, the run directory around it is not there, or no such network is in it.
    """
    quiet_libraries()
    found = checkpoint.find(config["checkpoint"], Path(config["checkpoint"]), KEY)
    assert found is not None
    lm, place = _network(found, config["network"])
    state = universal.load(found.state, key=KEY)
    weights = {name.removeprefix(place): state.weight(name) for name in state.shapes if name.startswith(place)}
    try:
        lm.model.load_state_dict(weights)
    except RuntimeError as error:
        allowed = f"a checkpoint of the {config['network']} in {found.run_dir} ({one_line(error)})"
        raise UserError(KEY, str(found.folder), allowed) from error
    dtype = config["dtype"] or found.layout.masters or _widest(weights.values())
    plain = merged(lm.model).to(getattr(torch, dtype))
    save(replace(lm, model=plain), config["out"])
    print(f"step {found.step} of {found.run_dir} in {dtype}: {config['out']}")
    return 0


def _network(found: checkpoint.Checkpoint, name: str) -> tuple[Any, str]:
    """The architecture, in fp32, which holds all values but those of fp64, and its place in the checkpoint."""
    recorded = found.run_dir / "config.yaml"
    others = _cotrained(recorded)
    if name not in ("student", *others):
        raise UserError("network", name, f"one that the run has trained: {', '.join(['student', *others])}")
    place = "student." if name == "student" else f"cotrained.{list(others).index(name)}."
    source = found.run_dir / ("source" if name == "student" else f"{ONLINE}/{name}/source")
    for path in (source, recorded):
        if not path.exists():
            allowed = f"a checkpoint in its run directory ({path} is missing, which tells the architecture)"
            raise UserError(KEY, str(found.folder), allowed)
    try:
        content = yaml.safe_load(recorded.read_text(encoding="utf-8"))
        section, task = others.get(name, content["student"]), tasks.of(content)
        kept = {key: section[key] for key in ("lora", "trust_remote_code") if key in section}
        wide = {"dtype": "float64"} if section.get("dtype") == "float64" else {}
        student = Student(path=str(source), **kept, **wide)
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        allowed = "a checkpoint in a run directory with the config.yaml that the run wrote"
        raise UserError(KEY, str(recorded), allowed) from error
    return task.build(student.model_dump(), seed=0, key=KEY, source=None), place


def _cotrained(recorded: Path) -> dict[str, Any]:
    """The sections of the networks that a run has trained beside its student, in the order of its checkpoints."""
    try:
        teacher = yaml.safe_load(recorded.read_text(encoding="utf-8"))["teacher"]
        return (teacher["members"] or {"teacher": teacher}) if teacher["kind"] == "cotrained" else {}
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        # What is missing is told where the architecture is read.
        return {}


def _widest(weights: Iterable[Tensor]) -> str:
    """The dtype to save in when the manifest does not say that of the masters."""
    dtype = max((weight.dtype for weight in weights if weight.is_floating_point()), key=lambda kind: kind.itemsize)
    return str(dtype).removeprefix("torch.")
