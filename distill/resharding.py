"""Resuming under another strategy or world size: a checkpoint's state by parameter name into whatever runs now.

Nothing is converted on disk: a single process and DDP get the state as the one file they would have saved, and each
rank of DeepSpeed reads its own part of every parameter out of the files, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from distill import distributed, manifest, sharding, universal
from distill.checkpoint import Checkpoint
from distill.manifest import Layout
from distill.universal import State

IMPLEMENTATION = frozenset({"fused", "foreach", "capturable", "differentiable"})
"""Settings of torch's optimizers that say how a step is computed, not which: the running optimizer has its own."""

MASTER = "master"


def layout(trainer: dict[str, Any], student: nn.Module) -> Layout:
    """How this run's state is spread over files; ``trainer`` is that section of the configuration."""
    strategy: str = trainer["strategy"]
    trained = next(parameter.dtype for parameter in student.parameters() if parameter.requires_grad)
    # DeepSpeed keeps masters in fp32 whatever the weights are.
    masters = "float32" if strategy.startswith("zero") else str(trained).removeprefix("torch.")
    return Layout(strategy, distributed.world_size(), trainer["precision"], masters)


def fits(saved: Layout, running: Layout) -> bool:
    """Whether a checkpoint loads as it is, bit for bit: shards need the same strategy, ranks and precision."""
    return saved == running if saved.sharded or running.sharded else True


def is_own(engine: Any, path: Path) -> bool:
    """Whether a DeepSpeed engine wrote this checkpoint in the form it has now, and can load it itself."""
    saved = manifest.read(path.parent, "resume").layout
    precision = "bf16-mixed" if engine.bfloat16_enabled() else "32-true"
    strategy = f"zero{int(engine.zero_optimization_stage())}"
    return fits(saved, Layout(strategy, distributed.world_size(), precision, saved.masters))


def prepare(trained: Mapping[str, nn.Module], resume: Checkpoint, trainer: dict[str, Any]) -> None:
    """Gives what is ``trained``, by its place in the module (the student's: `student`), the weights of a checkpoint of
    another layout, before any strategy has cut it up.

    A DeepSpeed engine starts from them, so that what its optimizer does not know (frozen weights, buffers) is right.
    """
    if fits(resume.layout, layout(trainer, trained["student"])):
        return
    state = universal.load(resume.state)
    with torch.no_grad():
        for place, model in trained.items():
            for name, tensor in model.state_dict().items():
                tensor.copy_(state.weight(f"{place}.{name}"))


class AnyCheckpointIO(TorchCheckpointIO):
    """Lightning's reader of single files, which takes shards for what they would be as one file."""

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if Path(path).is_dir():
            return universal.whole(universal.load(Path(path)))
        content: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        return content


def restore(engine: Any, path: Path) -> dict[str, Any]:
    """Fills the optimizer of a DeepSpeed engine, whose weights are already the checkpoint's; returns Lightning's part.

    The engine's own loader gets the state it would have saved itself. DeepSpeed's universal checkpoints are not used:
    they give every parameter group the settings of the first one (weight decay on norms), know no optimizer but Adam,
    cannot be made from a single process or DDP, and are a second copy on disk.
    """
    zero = engine.optimizer
    groups, flats = sharding.flat_groups(zero)
    state = universal.load(path, [engine.param_names[parameter] for group in groups for parameter in group])
    if hasattr(zero, "checkpoint_event_prologue"):
        zero.checkpoint_event_prologue()
    own = zero.state_dict()
    split = universal.FLAT3 in own
    masters = universal.FLAT3 if split else universal.FLAT12
    vectors = [_vectors(engine, state, group, flat) for group, flat in zip(groups, flats, strict=True)]
    # ZeRO-1 and 2 save their masters without the padding at the end.
    own[masters] = [each.pop(MASTER)[: len(saved)] for each, saved in zip(vectors, own[masters], strict=True)]
    inner = own["optimizer_state_dict" if split else "base_optimizer_state"]
    inner["state"] = dict(enumerate(vectors))
    for ours, theirs in zip(inner["param_groups"], state.groups, strict=True):
        ours |= {key: value for key, value in theirs.settings.items() if key not in IMPLEMENTATION}
    zero.load_state_dict([own] * distributed.world_size(), load_optimizer_states=True, load_from_fp32_weights=True)
    if not split:
        zero.update_lp_params()
    if hasattr(zero, "checkpoint_event_epilogue"):
        zero.checkpoint_event_epilogue()
    engine.global_steps = state.client["global_step"]
    return state.client


def _vectors(engine: Any, state: State, parameters: list[Any], flat: Tensor) -> dict[str, Tensor]:
    """This rank's part of the masters and of each moment of a flat vector; scalars as they are."""
    found: dict[str, Tensor] = {MASTER: torch.zeros(len(flat), dtype=torch.float32)}
    for parameter, start, low, numel in sharding.fragments(parameters):
        name = engine.param_names[parameter]
        for key, value in {MASTER: state.weight(name), **state.moments(name)}.items():
            if value.ndim == 0 and key != MASTER:
                found.setdefault(key, value.clone())
                continue
            into = found.setdefault(key, torch.zeros(len(flat), dtype=torch.float32))
            into[start : start + numel] = value.reshape(-1)[low : low + numel]
    return found
