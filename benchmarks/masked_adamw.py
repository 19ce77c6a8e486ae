"""MaskedAdamW against torch's fused AdamW: seconds of a step and bytes of state, by density and size.

``python -m benchmarks.masked_adamw [SIZE …]`` prints one row per size and density; every row's timings are interleaved
on one thread, and the fastest of REPEATS counts. ``step`` is what follows clipping; ``whole`` is masking, clipping and
the step: for the dense optimizer a product with the mask, ``clip_grad_norm_``, the step and putting frozen bits back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from distill.masked_optim import MaskedOptimizer

DENSITIES = (0.05, 0.1, 0.175, 0.25, 0.35, 0.5, 0.7)
SIZES = (1_000_000, 8_000_000, 30_000_000)
REPEATS = 9
OPTIONS = {"lr": 1e-5, "weight_decay": 0.1}


def fastest(functions: dict[str, Callable[[], None]], prepare: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of each, taken in turns; ``prepare`` comes before every call and is not counted."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(REPEATS + 1):
        for name, function in functions.items():
            prepare()
            began = time.perf_counter()
            function()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - began))
    return best


def row(size: int, density: float) -> str:
    weights, gradient, mask = torch.randn(size), torch.randn(size), torch.rand(size) < density
    parameters = {name: weights.clone().requires_grad_() for name in ("dense", "compact", "restored")}
    dense = torch.optim.AdamW([parameters["dense"]], **OPTIONS, fused=True)
    masked = {
        name: MaskedOptimizer(torch.optim.AdamW([parameters[name]], **OPTIONS, fused=True), compact=name == "compact")
        for name in ("compact", "restored")
    }
    for name, optimizer in masked.items():
        optimizer.assign(parameters[name], mask)

    def prepare() -> None:
        for parameter in parameters.values():
            parameter.grad = gradient.clone()
        for optimizer in masked.values():
            optimizer.clip(1.0)

    def prepare_whole() -> None:
        for parameter in parameters.values():
            parameter.grad = gradient.clone()

    def dense_whole() -> None:
        parameter = parameters["dense"]
        kept = parameter.detach().clone()
        assert parameter.grad is not None
        parameter.grad.mul_(mask)
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        dense.step()
        with torch.no_grad():
            parameter.copy_(torch.where(mask, parameter, kept))

    def whole(name: str) -> Callable[[], None]:
        def run() -> None:
            masked[name].clip(1.0)
            masked[name].step()

        return run

    steps = fastest({"dense": dense.step, **{name: masked[name].step for name in masked}}, prepare)
    wholes = fastest({"dense": dense_whole, **{name: whole(name) for name in masked}}, prepare_whole)
    ours, theirs = masked["compact"].bytes()
    kept = sum(value.nbytes for value in masked["compact"].state[parameters["compact"]].values())
    assert kept <= ours
    timings = " ".join(f"{found[name]:8.2f}" for found in (steps, wholes) for name in ("dense", "compact", "restored"))
    return f"{size:>10} {density:7.3f} {timings} {ours / theirs:7.1%}"


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'':>18} {'step, ms':^26} {'whole, ms':^26}")
    names = " ".join(f"{name:>8}" for name in ("dense", "compact", "restored") * 2)
    print(f"{'size':>10} {'density':>7} {names} {'state':>7}", flush=True)
    for size in map(int, sys.argv[1:] or SIZES):
        for density in DENSITIES:
            print(row(size, density), flush=True)


if __name__ == "__main__":
    main()
