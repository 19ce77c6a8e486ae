"""Seconds for one measurement of update sparsity: every tensor, both precisions, all tolerances.

    python benchmarks/sparsity.py --layers 30 --hidden 576

The tensors are those of a Llama of that size (the defaults are SmolLM2-135M's) with random values; the source is a
safetensors folder, as in a run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from distill.analysis.source import Folder
from distill.analysis.sparsity import compare, total_pair


def weights(layers: int, hidden: int, vocab: int) -> dict[str, torch.Tensor]:
    inner, narrow = hidden * 8 // 3, hidden // 3
    shapes = {"q_proj": (hidden, hidden), "k_proj": (narrow, hidden), "v_proj": (narrow, hidden)}
    shapes |= {"o_proj": (hidden, hidden), "gate_proj": (inner, hidden), "up_proj": (inner, hidden)}
    shapes |= {"down_proj": (hidden, inner)}
    found = {"model.embed_tokens.weight": torch.randn(vocab, hidden) * 0.02}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}.weight": torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    source = weights(options.layers, options.hidden, options.vocab)
    trained = {name: value + 2e-5 * torch.randn_like(value) for name, value in source.items()}
    numel = sum(value.numel() for value in source.values())
    with tempfile.TemporaryDirectory() as folder:
        save_file(source, Path(folder) / "model.safetensors")
        del source
        for _ in range(options.repeats):
            began = time.perf_counter()
            with Folder(Path(folder), "source") as opened:
                whole = total_pair(compare(opened.tensor(name), value) for name, value in trained.items())
            seconds = time.perf_counter() - began
            print(
                f"{numel / 1e6:.1f} M parameters, {torch.get_num_threads()} threads: {seconds:.2f} s"
                f" (sparsity bf16 {whole['bf16'].sparsity():.4f}, fp32 {whole['fp32'].sparsity():.4f})"
            )


if __name__ == "__main__":
    main()
