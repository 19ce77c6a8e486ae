"""What takes most of the memory, in words, and which key changes it."""

from __future__ import annotations

from typing import Any

from distill.planning.memory import ALLOCATOR, BASELINE
from distill.planning.plan import COPY, MAPPED, Plan

REMEDIES = {
    "student weights": "trainer=zero3 shards them over the ranks; trainer.precision=bf16-true halves them",
    "gathered weights": "rollout.gather=layers gathers one layer at a time",
    "gradients": "trainer=zero2 shards them; student.lora.r=16 trains fewer",
    "fp32 masters": "more ranks, or trainer=zero3_offload",
    "optimizer state": "trainer=zero1 shards it over the ranks; student.lora.r=16 or optimizer=sgd needs less",
    "teacher": "teacher.placement=sharded or offloaded under ZeRO; teacher.dtype=bfloat16 halves it",
    "gathered teacher": "teacher.placement=replicated holds it once, if it fits",
    "teacher's activations": "a smaller trainer.micro_batch_size",
    "activations": "a smaller trainer.micro_batch_size, or student.gradient_checkpointing=true",
    "KV cache": "a smaller rollout.batch_size (rows decoded at once) or rollout.max_new_tokens",
    "rollout's logits": "a smaller rollout.batch_size (rows decoded at once)",
    "loss workspace": "a smaller objective.chunk_size (target positions whose logits exist at once)",
    "backward pass": "a smaller objective.chunk_size or trainer.micro_batch_size",
    "communication buffers": "trainer=zero2 needs less than trainer=ddp",
    COPY: "callbacks.checkpoint=null saves none; ZeRO writes shards without a copy",
    MAPPED: "callbacks.sparsity=null; the pages are given back when memory is short",
}


def give(plan: Plan, config: dict[str, Any]) -> list[str]:
    """At most three sentences: what dominates the peak, and whether the run fits."""
    terms = plan.phases[plan.peak_phase]
    order = sorted(terms, key=lambda name: -terms[name])
    first = next(name for name in order if name not in (BASELINE, ALLOCATOR))
    share = terms[first] / plan.peak
    found = [
        f"Most of the peak, in {plan.peak_phase}, is {first} ({share:.0%}): {REMEDIES.get(first, 'no key changes it')}."
    ]
    rows, most = plan.work.micro_rows, plan.largest_micro_batch_size
    if plan.fits is False and most:
        found.append(f"It does not fit; trainer.micro_batch_size={most} would.")
    elif plan.fits is False:
        found.append("It does not fit with any trainer.micro_batch_size.")
    elif most is not None and most > rows:
        found.append(f"trainer.micro_batch_size may be as large as {most} (now {rows}).")
    if plan.gather is not None and config["rollout"]["gather"] == "auto":
        found.append(f"rollout.gather=auto will be {plan.gather}.")
    return found
