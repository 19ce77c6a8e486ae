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

KEY = "checkpoint"


def run(config: dict[str, Any], run_dir: Path) -> int:
    """Verifies the checkpoint, then writes its student to ``out``: masters where there are, LoRA merged, tokenizer.

    Needs the run directory around the checkpoint (``source/`` and ``config.yaml``), but neither a GPU nor processes.

    Raises:
        UserError: the checkpoint is damaged, or the run directory around it is not there.
    """
    quiet_libraries()
    found = checkpoint.find(config["checkpoint"], Path(config["checkpoint"]), KEY)
    assert found is not None
    lm = _student(found)
    state = universal.load(found.state, key=KEY)
    weights = {name.removeprefix("student."): state.weight(name) for name in state.shapes}
    try:
        lm.model.load_state_dict(weights)
    except RuntimeError as error:
        allowed = f"a checkpoint of the student in {found.run_dir} ({one_line(error)})"
        raise UserError(KEY, str(found.folder), allowed) from error
    dtype = config["dtype"] or found.layout.masters or _widest(weights.values())
    plain = merged(lm.model).to(getattr(torch, dtype))
    save(replace(lm, model=plain), config["out"])
    print(f"step {found.step} of {found.run_dir} in {dtype}: {config['out']}")
    return 0


def _student(found: checkpoint.Checkpoint) -> Any:
    """The architecture of the run, in fp32, which holds the values of every precision but fp64."""
    source, recorded = found.run_dir / "source", found.run_dir / "config.yaml"
    for path in (source, recorded):
        if not path.exists():
            allowed = f"a checkpoint in its run directory ({path} is missing, which tells the architecture)"
            raise UserError(KEY, str(found.folder), allowed)
    try:
        content = yaml.safe_load(recorded.read_text(encoding="utf-8"))
        section, task = content["student"], tasks.of(content)
        kept = {key: section[key] for key in ("lora", "trust_remote_code")}
        wide = {"dtype": "float64"} if section.get("dtype") == "float64" else {}
        student = Student(path=str(source), **kept, **wide)
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        allowed = "a checkpoint in a run directory with the config.yaml that the run wrote"
        raise UserError(KEY, str(recorded), allowed) from error
    return task.build(student.model_dump(), seed=0, key=KEY, source=None)


def _widest(weights: Iterable[Tensor]) -> str:
    """The dtype to save in when the manifest does not say that of the masters."""
    dtype = max((weight.dtype for weight in weights if weight.is_floating_point()), key=lambda kind: kind.itemsize)
    return str(dtype).removeprefix("torch.")
