"""Seconds for one live measurement of update sparsity, part by part.

    python -m benchmarks.sparsity --layers 30 --hidden 576

The tensors are those of a Llama of that size (the defaults are SmolLM2-135M's) with random values that move by noise;
θ₀ is a safetensors folder and the last measurement a snapshot, as in a run. Parts are timed in turn and told by their
fastest of several rounds: on a machine that others use, the fastest is what least was waited in.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from distill.analysis.live import Weight
from distill.analysis.source import Folder
from distill.analysis.sparsity import compare, total_pair
from distill.callbacks.snapshots import Snapshot, Writer
from distill.callbacks.sparsity_measure import Measure, Measurement
from distill.callbacks.sparsity_record import metrics


def weights(layers: int, hidden: int, vocab: int) -> dict[str, torch.Tensor]:
    inner, narrow = hidden * 8 // 3, hidden // 3
    shapes = {"q_proj": (hidden, hidden), "k_proj": (narrow, hidden), "v_proj": (narrow, hidden)}
    shapes |= {"o_proj": (hidden, hidden), "gate_proj": (inner, hidden), "up_proj": (inner, hidden)}
    shapes |= {"down_proj": (hidden, inner)}
    found = {"model.embed_tokens.weight": torch.randn(vocab, hidden) * 0.02}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}.weight": torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    return found


def parts(folder: Path, trained: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; the first measurement of a run also reads the null's histograms of θ₀."""
    weights = {name: Weight(value.detach, (value,)) for name, value in trained.items()}
    pairs = tuple((name, name) for name in trained)
    kept = folder / "weights"

    def write(step: int) -> None:
        writer = Writer(kept, step)
        for name, value in trained.items():
            writer.add(name, 0, value)
        writer.publish()

    def started() -> None:
        with Folder(folder / "source", "source") as opened:
            total_pair(compare(opened.tensor(name), value) for name, value in trained.items())

    def whole(spread: bool) -> Measurement:
        writer = Writer(kept, 2)
        found = later.run(2, Snapshot(kept, 1), writer, from_start=False, spread=spread)
        writer.publish()
        return found

    def first() -> None:
        writer = Writer(kept, 3)
        Measure(folder / "source", weights, pairs).run(3, None, writer, from_start=True, spread=False)
        writer.publish()

    write(1)
    later = Measure(folder / "source", weights, pairs)
    later.run(1, None, None, from_start=False, spread=False)
    return {
        "counts against θ₀": started,
        "and the null (since_last=false)": lambda: later.run(1, None, None, from_start=False, spread=False),
        "and the last measurement": lambda: later.run(1, Snapshot(kept, 1), None, from_start=False, spread=False),
        "and a new snapshot (the default)": lambda: whole(spread=False),
        "and the histogram (W&B)": lambda: whole(spread=True),
        "the first of a run": first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    source = weights(options.layers, options.hidden, options.vocab)
    trained = {name: value + 2e-5 * torch.randn_like(value) for name, value in source.items()}
    numel = sum(value.numel() for value in source.values())
    print(f"{numel / 1e6:.1f} M parameters, {torch.get_num_threads()} threads, fastest of {options.repeats}")
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name) / "source").mkdir()
        save_file(source, folder / "model.safetensors")
        del source
        timed = parts(Path(name), trained)
        seconds: dict[str, list[tuple[float, float]]] = {part: [] for part in timed}
        for _ in range(options.repeats):
            for part, function in timed.items():
                began = time.perf_counter(), time.process_time()
                found = function()
                seconds[part].append((time.perf_counter() - began[0], time.process_time() - began[1]))
                if isinstance(found, Measurement):
                    numbers = metrics(found)
        for part, times in seconds.items():
            wall, busy = (min(column) for column in zip(*times, strict=True))
            print(f"  {part:<34}{wall:6.2f} s   {busy:6.2f} s of CPU time")
    kinds = ("sparsity", "sparsity_null")
    print("  " + ", ".join(f"{kind}/bf16/1e-5 {numbers[f'{kind}/bf16/1e-5']:.4f}" for kind in kinds))


if __name__ == "__main__":
    main()
