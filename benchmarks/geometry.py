"""Seconds for one log of each callback that looks at weights or the optimizer, and what the source's cache holds.

    python -m benchmarks.geometry --matrices 7

The tensors are those of a Llama of that size (the defaults are SmolLM2-135M's) with random values; the update has
three strong directions beside noise.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from benchmarks.sparsity import weights
from distill.analysis.decompose import decompose
from distill.analysis.matrix import DIRECTIONS, Sources, measure
from distill.analysis.moments import agreement, spread
from distill.analysis.sample import sampled


def moved(source: Tensor) -> Tensor:
    low = torch.randn(len(source), 3) @ torch.randn(3, source.shape[1])
    return source + 1e-5 * low + 1e-5 * torch.randn_like(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--matrices", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    source = weights(options.layers, options.hidden, options.vocab)
    names = sampled(source, options.matrices, seed=0)
    trained, cache = {name: moved(source[name]) for name in names}, Sources()
    print(f"{torch.get_num_threads()} threads, {sum(v.numel() for v in source.values()) / 1e6:.1f} M parameters")
    for repeat in range(options.repeats):
        began = time.perf_counter()
        for name in names:
            measure(name, source[name], trained[name], cache, seed=0)
        seconds, held = time.perf_counter() - began, cache.held_bytes / 2**20
        print(f"geometry, {len(names)} matrices, log {repeat + 1}: {seconds:.1f} s; the cache holds {held:.0f} MiB")
    began = time.perf_counter()
    for name in names:
        decompose(trained[name] - source[name], DIRECTIONS)
    print(
        f"gradient_subspace, {len(names)} matrices, rank {DIRECTIONS}: {time.perf_counter() - began:.1f} s to decompose"
    )
    began = time.perf_counter()
    for value in source.values():
        _ = agreement(value, value), spread(value.square())
    print(f"optimizer_state, all parameters: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
