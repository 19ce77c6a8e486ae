"""What takes most of the memory, in words, and which key changes it."""

from __future__ import annotations

from typing import Any

from distill.planning.memory import ALLOCATOR, BASELINE
from distill.planning.plan import COPY, EARLIER, MAPPED, Plan

REMEDIES = {
    "student weights": "trainer.precision=bf16-true halves them, if they are fp32",
    "gathered weights": "rollout.gather=layers gathers one layer at a time",
    "gradients": "student.lora.r=16 trains fewer",
    "fp32 masters": "more ranks, or trainer=zero3_offload on GPUs",
    "optimizer state": "student.lora.r=16 or optimizer=sgd needs less",
    "teacher": "teacher.dtype=bfloat16 halves it, if it is fp32",
    "gathered teacher": "teacher.placement=replicated holds it once, if it fits",
    "teacher's activations": "a smaller trainer.micro_batch_size",
    "teacher's states": "a smaller data.batch_size or rollout.max_new_tokens",
    "activations": "a smaller trainer.micro_batch_size, or student.gradient_checkpointing=true",
    "KV cache": "a smaller rollout.batch_size (rows decoded at once) or rollout.max_new_tokens",
    "rollout's logits": "a smaller rollout.batch_size (rows decoded at once)",
    "loss workspace": "a smaller objective.chunk_size (target positions whose logits exist at once)",
    "backward pass": "a smaller objective.chunk_size or trainer.micro_batch_size",
    COPY: "callbacks.checkpoint=null saves none; ZeRO writes shards without a copy",
    EARLIER: "callbacks.extrapolation=null needs none",
    MAPPED: "callbacks.sparsity=null; the pages are given back when memory is short",
}
SHARDED_FROM = {"student weights": 3, "gradients": 2, "optimizer state": 1}
"""ZeRO's stage from which a rank holds its share alone."""


def give(plan: Plan, config: dict[str, Any]) -> list[str]:
    """What dominates the peak, whether the run fits, and what is not in the plan: a sentence each."""
    terms = plan.phases[plan.peak_phase]
    order = sorted(terms, key=lambda name: -terms[name])
    first = next(name for name in order if name not in (BASELINE, ALLOCATOR))
    said = f"{first} ({terms[first] / plan.peak:.0%}): {remedy(first, plan.machine.ranks, config)}."
    found = [f"Most of the peak, in {plan.peak_phase}, is {said}"]
    base = terms.get(BASELINE, 0) / plan.peak
    if base > 0.5:
        constant = f"is {BASELINE} ({base:.0%}), which no key changes"
        found = [f"Most of the peak, in {plan.peak_phase}, {constant}; most of the rest is {said}"]
    rows, most = plan.work.micro_rows, plan.largest_micro_batch_size
    if plan.fits is False and most:
        found.append(f"It does not fit; trainer.micro_batch_size={most} would.")
    elif plan.fits is False:
        found.append("It does not fit with any trainer.micro_batch_size.")
    elif most is not None and most > rows:
        found.append(f"trainer.micro_batch_size may be as large as {most} (now {rows}).")
    if plan.gather is not None and config["rollout"]["gather"] == "auto":
        found.append(f"rollout.gather=auto will be {plan.gather}.")
    if config["teacher"]["kind"] == "custom":
        found.append("teacher.custom is not counted: add what your teacher holds.")
    if config["teacher"]["kind"] == "cotrained":
        missing = "gradients, optimizer state, activations, checkpoints"
        found.append(f"Of networks trained with the student the weights alone are counted: add their {missing}.")
    return found


def remedy(term: str, ranks: int, config: dict[str, Any]) -> str:
    """What makes a term smaller; sharding only over several ranks, and further than it is chosen already."""
    strategy: str = config["trainer"]["strategy"]
    stage = int(strategy.removeprefix("zero")) if strategy.startswith("zero") else 0
    found, needed = [], SHARDED_FROM.get(term, 0)
    if ranks > 1 and stage < needed:
        found.append(f"trainer=zero{needed} shards it over the ranks")
    if ranks > 1 and term == "teacher" and stage and config["teacher"]["placement"] == "replicated":
        found.append("teacher.placement=sharded shards it over the ranks")
    if ranks > 1 and term == "communication buffers" and strategy == "ddp":
        found.append("trainer=zero2 needs less than trainer=ddp")
    return "; ".join([*found, *([REMEDIES[term]] if term in REMEDIES else [])]) or "no key changes it"
