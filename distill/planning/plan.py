"""The plan of one run: rehearsed on fake tensors, then turned into the memory of one rank, phase by phase."""

from __future__ import annotations

import importlib
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distill import distributed
from distill.masked_optim import share_of_state
from distill.maskfile import MaskFile
from distill.planning import disk, skeleton, teaching, workload
from distill.planning.machine import OTHER, Machine, describe, resident
from distill.planning.memory import BASELINE, CONTEXT, Rank, States, on_rank
from distill.planning.rehearsal import Rehearsal
from distill.planning.tracker import Peak, Tracker
from distill.planning.workload import Workload
from distill.strategies import is_zero, trains_in_bf16

log = logging.getLogger(__name__)

OPTIMIZER = "optimizer state"
MAPPED = "mapped weight file"
COPY = "copy for the checkpoint"
EARLIER = "weights to extrapolate from"
SMALL = 40
"""A student that fits so often into a rank's memory is gathered whole without a plan."""
HERE = dict.fromkeys(("devices", "devices_per_node", "device_memory", "host_memory", "gpu", "out"))
"""The section ``plan`` of a run on this machine."""
ROOM = 0.95
"""Share of a device that a plan may fill."""
ROLLOUTS = ("rollout", "evaluation at the start", "evaluation")


@dataclass(frozen=True)
class Plan:
    """``phases``: bytes by term for one rank on its device; ``host``: bytes of one machine beside its GPUs."""

    machine: Machine
    work: Workload
    phases: dict[str, dict[str, int]]
    host: int
    gather: str | None
    disk: dict[str, int]
    tokens: dict[str, int]
    parameters: dict[str, int]
    largest_micro_batch_size: int | None = None
    advice: list[str] = field(default_factory=list)

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> int:
        return sum(self.phases[self.peak_phase].values())

    @property
    def fits(self) -> bool | None:
        """None where the limit is not known."""
        return None if self.machine.limit is None else self.peak <= ROOM * self.machine.limit

    def as_dict(self) -> dict[str, Any]:
        """Plain values, sizes in bytes."""
        found = asdict(self) | {"peak_phase": self.peak_phase, "peak": self.peak, "fits": self.fits}
        return found | {"limit": self.machine.limit}


@dataclass
class Planner:
    """Everything about one configuration that does not depend on the micro-batch size."""

    config: dict[str, Any]
    machine: Machine
    work: Workload
    words: Any
    mode: FakeTensorMode

    def peaks(self, work: Workload, only_step: bool = False) -> tuple[dict[str, Peak], States]:
        """The peak of every phase with these micro-batches, and what the models hold."""
        spec = self.config["student"] | ({"dtype": "bfloat16"} if trains_in_bf16(self.config["trainer"]) else {})
        student = skeleton.build(spec, self.words, "student", self.mode)
        teacher, beside = teaching.build(self.config["teacher"], self.words, student, self.mode)
        with self.mode:
            found = Rehearsal(self.config, work, student, teacher, beside, Tracker(not self.machine.gpu), {})
            found.run(only_step)
        states = States.of(student.model, [lm.model for lm in beside])
        return found.phases, replace(states, waiting=teaching.waiting(self.config, work, beside))

    def phases(self, work: Workload, gather: str, only_step: bool = False) -> tuple[dict[str, dict[str, int]], States]:
        """Bytes by term of every phase, on one rank."""
        peaks, states = self.peaks(work, only_step)
        rank = self._rank(gather)
        found = {
            name: on_rank(peak, states, rank, self.moments, rollout=name in ROLLOUTS, gpu=self.machine.gpu)
            for name, peak in peaks.items()
        }
        for terms in found.values():
            if OPTIMIZER in terms:
                terms[OPTIMIZER] = round(terms[OPTIMIZER] * self._share(states.itemsize))
        base = {BASELINE: CONTEXT if self.machine.gpu else self.machine.baseline}
        return {name: terms | base for name, terms in found.items()}, states

    @property
    def moments(self) -> int:
        options = self.config["optimizer"]
        return 2 if options["name"] == "adamw" else int(options["momentum"] > 0)

    def _share(self, itemsize: int) -> float:
        """What a mask leaves of the optimizer's state; ZeRO's is in fp32 whatever the weights are."""
        options = self.config["callbacks"]["update_mask"]
        if options is None:
            return 1.0
        density = MaskFile(Path(options["path"]), "callbacks.update_mask.path").density
        return share_of_state(density, self.moments, 4 if is_zero(self.config["trainer"]) else itemsize)

    def _rank(self, gather: str) -> Rank:
        trainer, placement = self.config["trainer"], self.config["teacher"]["placement"]
        return Rank(trainer["strategy"], self.machine.ranks, trainer["offload"], placement, gather)


def prepare(config: dict[str, Any]) -> Planner:
    """Reads tokenizer, model configuration and data; weights are neither read nor asked for.

    Raises:
        UserError: something that is read does not exist here.
    """
    importlib.import_module("distill.commands.train")
    words = skeleton.tokenizer(config["student"], "student")
    settings = skeleton.config(config["student"], words, "student")
    for key, part in teaching.parts(config["teacher"]).items():
        skeleton.config(part, words, key)
    positions = getattr(settings.get_text_config(), "max_position_embeddings", None)
    machine = describe(config, baseline=0)
    work = workload.read(config, words, positions, machine.ranks)
    return Planner(config, describe(config, resident() + OTHER), work, words, FakeTensorMode())


def make(config: dict[str, Any], planner: Planner) -> Plan:
    """The plan of a validated configuration of ``distill plan``, without the micro-batch size that fits."""
    machine, zero3 = planner.machine, config["trainer"]["strategy"] == "zero3"
    gather = config["rollout"]["gather"]
    phases, states = planner.phases(planner.work, "model" if gather == "auto" else gather)
    if gather == "auto" and zero3:
        gather = gather_of(phases, machine.limit)
        phases = phases if gather == "model" else planner.phases(planner.work, gather)[0]
    saved = states.weights
    state = disk.checkpoint(config, states, planner.moments, saved)
    _saving(phases, config, states, state, machine.gpu)
    loading = states.weights + states.teacher
    copy = 0 if is_zero(config["trainer"]) else state
    earlier = _extrapolating(phases, config, states, machine)
    host = (
        machine.ranks_per_node * (machine.baseline + earlier + max(loading, copy + states.waiting))
        if machine.gpu
        else 0
    )
    return Plan(
        machine, planner.work, phases, host, gather if zero3 else None,
        disk.usage(config, states, states.weights, state), disk.tokens(config, planner.work, machine.ranks),
        {"student": states.weights, "trained": states.trained, "teacher": states.teacher},
    )  # fmt: skip


def gather_of(phases: dict[str, dict[str, int]], limit: int | None) -> str:
    """``model`` where the whole student fits beside everything else of a rollout, else ``layers``."""
    most = max((sum(terms.values()) for name, terms in phases.items() if name in ROLLOUTS), default=0)
    return "model" if limit is None or most <= ROOM * limit else "layers"


def agreed_gather(config: dict[str, Any], student: nn.Module) -> str:
    """The key ``rollout.gather``, or what rank 0 plans for it under ZeRO-3. A collective."""
    asked: str = config["rollout"]["gather"]
    if asked != "auto" or config["trainer"]["strategy"] != "zero3":
        return asked
    planned = "model"
    if distributed.rank() == 0:
        size = sum(parameter.numel() * parameter.element_size() for parameter in student.parameters())
        limit = describe(config | {"plan": HERE}, baseline=0).limit
        # A rehearsal takes seconds: none for a student that is small beyond doubt.
        if limit is None or SMALL * size > limit:
            try:
                planned = choose_gather(config, None, None)
            except Exception as error:
                # A rehearsal does not know every operator, and a plan must not be what stops a run.
                log.warning("rollout.gather=auto: no plan (%s), so the student is gathered layer by layer", error)
                planned = "layers"
    return "layers" if distributed.all_max(int(planned == "layers")) else "model"


def choose_gather(config: dict[str, Any], ranks: int | None, device_memory: int | None) -> str:
    """How ZeRO-3 collects the student to generate: ``model`` (at once) or ``layers``; ``device_memory`` in bytes.

    ``config`` is that of ``distill train``; None stands for the launcher's ranks and this machine's memory.
    """
    size = None if device_memory is None else f"{device_memory}B"
    planner = prepare(config | {"plan": HERE | {"devices": ranks, "device_memory": size}})
    # The second rollout is the first beside gradients and optimizer states.
    work = replace(planner.work, steps=min(planner.work.steps, 2))
    return gather_of(planner.phases(work, "model", only_step=True)[0], planner.machine.limit)


def _extrapolating(phases: dict[str, dict[str, int]], config: dict[str, Any], states: States, machine: Machine) -> int:
    """Bytes of CPU memory that a rank needs for copies of what is extrapolated; on the CPU they are in every phase."""
    if config["callbacks"]["extrapolation"] is None:
        return 0
    sharded = is_zero(config["trainer"])
    elements = -(-states.extrapolated // machine.ranks) if sharded else states.extrapolated
    kept = elements * (4 if sharded else states.itemsize)
    # While candidates are tried: what they start from, what the optimizer made, and what has been accepted.
    most = 3 * kept
    if not machine.gpu:
        for terms in phases.values():
            terms[EARLIER] = kept
        phases["extrapolation"] = phases.get("evaluation", phases["after a step"]) | {EARLIER: most}
    return most


def _saving(phases: dict[str, dict[str, int]], config: dict[str, Any], states: States, state: int, gpu: bool) -> None:
    """Adds the phases that no tensor operation shows: measuring sparsity and saving, on top of what stays."""
    if gpu:
        return
    idle = phases["after a step"]
    if config["callbacks"]["sparsity"] is not None:
        phases["sparsity"] = idle | {MAPPED: states.weights}
    if config["callbacks"]["checkpoint"] is not None and not is_zero(config["trainer"]):
        phases["checkpoint"] = idle | {COPY: state}
