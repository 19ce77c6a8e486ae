"""From the peaks of a rehearsal on one process to the memory of one rank under any strategy. Sizes are bytes.

ZeRO's shares follow DeepSpeed's own estimators (``estimate_zero2_model_states_mem_needs_all_cold`` and its ZeRO-3
counterpart count weights, gradients, masters and Adam's moments) with the buffers of ``distill.strategies.config``.
``W`` ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from distill.analysis.naming import EXTRAPOLATED, place
from distill.planning.tracker import Peak

BUCKET = 50_000_000
LIVE = 1_000_000_000
"""Elements: of DeepSpeed's communication buffers here, and of weights ZeRO-3 keeps gathered for their next use."""
CONTEXT = 600 << 20
"""What CUDA and its libraries take on a device. Not measured here: no GPU was at hand."""
ALLOCATOR = "allocator"
BASELINE = "Python and libraries"


@dataclass(frozen=True)
class States:
    """Model states of the whole run: bytes of weights, elements that train, and those an extrapolation moves;
    ``waiting``: bytes of a rank's rows that are kept off its GPU during a step."""

    weights: int
    trained: int
    itemsize: int
    largest_layer: int
    teacher: int
    extrapolated: int = 0
    waiting: int = 0

    @classmethod
    def of(cls, student: nn.Module, teachers: list[nn.Module]) -> States:
        layers = [size for module in student.modules() if isinstance(module, nn.ModuleList) for size in _sizes(module)]
        outside = [parameter.nbytes for parameter in student.parameters()]
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        return cls(
            sum(outside),
            sum(parameter.numel() for parameter in trained),
            trained[0].itemsize,
            max(layers + outside),
            sum(parameter.nbytes for teacher in teachers for parameter in teacher.parameters()),
            sum(
                parameter.numel()
                for name, parameter in student.named_parameters()
                if parameter.requires_grad and place(name).group in EXTRAPOLATED
            ),
        )

    @property
    def gradients(self) -> int:
        return self.trained * self.itemsize


def _sizes(layers: nn.ModuleList) -> list[int]:
    return [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]


@dataclass(frozen=True)
class Rank:
    """What decides how much of the states a rank holds. ``gather`` is how ZeRO-3 collects the student to generate."""

    strategy: str
    world_size: int
    offload: bool
    placement: str
    gather: str

    @property
    def stage(self) -> int:
        return int(self.strategy.removeprefix("zero")) if self.strategy.startswith("zero") else 0


def on_rank(peak: Peak, states: States, rank: Rank, moments: int, *, rollout: bool, gpu: bool) -> dict[str, int]:
    """Bytes by category of one rank on its device at the peak of a phase; ``moments`` of the optimizer per element."""
    terms = dict(peak.live)
    kept = max(0, peak.resident - peak.total)
    terms["student weights"] = states.weights
    training = "optimizer state" in terms
    if rank.stage and training:
        terms |= _zero(states, rank, moments, on_device=not (rank.offload and gpu))
    elif rank.stage:
        terms.pop("gradients", None)
    if rank.stage == 3:
        terms["student weights"] = 0 if rank.offload and gpu else -(-states.weights // rank.world_size)
        whole = min(states.weights, LIVE * states.itemsize)
        terms["gathered weights"] = states.largest_layer if rollout and rank.gather == "layers" else (
            states.weights if rollout else whole
        )  # fmt: skip
    if rank.strategy == "ddp" and training:
        terms["communication buffers"] = states.gradients
    if states.teacher and rank.placement != "replicated":
        shard = 0 if rank.placement == "offloaded" and gpu else -(-states.teacher // rank.world_size)
        terms["teacher"] = shard
        terms["gathered teacher"] = min(states.teacher, LIVE * states.itemsize)
    terms[ALLOCATOR] = sum(terms.values()) // 20 if gpu else kept
    return {name: size for name, size in terms.items() if size > 0}


def _zero(states: States, rank: Rank, moments: int, on_device: bool) -> dict[str, int]:
    shard = -(-states.trained // rank.world_size)
    # Summed over micro-batches in fp32, whatever the weights are.
    gradients = 4 * (states.trained if rank.stage == 1 else shard)
    return {
        "gradients": gradients + shard * 4,
        "fp32 masters": shard * 4 if on_device else 0,
        "optimizer state": shard * 4 * moments if on_device else 0,
        "communication buffers": min(BUCKET, states.trained) * states.itemsize,
    }
