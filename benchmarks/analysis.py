"""Seconds of `distill analyze` beside three singular value decompositions per matrix, and how far the values agree.

    python -m benchmarks.analysis --layers 30

The checkpoints have the shapes of SmolLM2-135M: a source whose spectrum falls off, an update of low rank plus noise,
stored in fp32 and in bf16. The decompositions of W, W′ and Δ (`torch.linalg.svd`, fp32, one precision) are what the
analysis replaces; it measures two precisions, coordinates and, with draws, everything once more for each of them. Both
use all cores and take turns, so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.sparsity import weights
from distill.analysis.decompose import decompose
from distill.commands import analyze
from distill.config.schema_analyze import AnalyzeConfig

NORM = 1e-3
"""‖Δ‖/‖W‖ of the update."""
ROWS = 8192


def checkpoints(layers: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    source, trained = weights(layers, 576, 49152), {}
    for name, value in source.items():
        rows, columns = value.shape
        # Weights of trained models have a few large directions and a long tail.
        value.mul_(torch.linspace(3, 0.3, columns))
        signal = torch.randn(rows, 4) @ torch.randn(4, columns)
        update = signal / signal.norm() + torch.randn(rows, columns) / value.numel() ** 0.5
        trained[name] = value + NORM * value.norm() / 2**0.5 * update
    return source, trained


def decomposing(source: dict[str, Tensor], trained: dict[str, Tensor], full_matrices: bool) -> float:
    """Seconds of three decompositions of every matrix."""
    spent = 0.0
    for name, start in source.items():
        for matrix in (start, trained[name], trained[name] - start):
            spent += full(matrix) if full_matrices else clocked(matrix, False)
    return spent


def full(matrix: Tensor) -> float:
    """Seconds with `full_matrices=True`. U of more than ROWS rows is extrapolated: its time grows with their square."""
    rows = len(matrix)
    return clocked(matrix[:ROWS], True) * max(rows / ROWS, 1) ** 2


def clocked(matrix: Tensor, full_matrices: bool) -> float:
    began = time.perf_counter()
    torch.linalg.svd(matrix, full_matrices=full_matrices)
    return time.perf_counter() - began


def analyzing(folder: Path, stored: str, **options: object) -> float:
    paths = {key: str(folder / f"{key}-{stored}.safetensors") for key in ("source", "trained")}
    config = AnalyzeConfig(**paths, out=str(folder / "out"), **options).model_dump()  # type: ignore[arg-type]
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        analyze.run(config, folder)
    return time.perf_counter() - began


def disagreement(source: dict[str, Tensor]) -> float:
    """The largest relative difference of singular values from those of an exact decomposition in float64."""
    worst = 0.0
    for name, matrix in source.items():
        if "layers.0." in name:
            exact = torch.linalg.svdvals(matrix.double())
            worst = max(worst, float(((decompose(matrix).values - exact) / exact).abs().max()))
    return worst


def save(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / f"{name}-fp32.safetensors")
    save_file({key: value.bfloat16() for key, value in tensors.items()}, folder / f"{name}-bf16.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    torch.manual_seed(0)
    source, trained = checkpoints(given.layers)
    size = sum(value.numel() for value in source.values()) / 1e6
    print(f"{size:.0f} M parameters, {torch.get_num_threads()} threads, means of {given.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, "source", source)
        save(folder, "trained", trained)
        tasks: dict[str, Callable[[], float]] = {
            "three svd, full_matrices=False": lambda: decomposing(source, trained, False),
            "three svd, full_matrices=True, embedding extrapolated": lambda: decomposing(source, trained, True),
            "analyze fp32, null_draws=0": lambda: analyzing(folder, "fp32", null_draws=0),
            "analyze bf16, null_draws=0": lambda: analyzing(folder, "bf16", null_draws=0),
            "analyze fp32, null_draws=3": lambda: analyzing(folder, "fp32"),
            "analyze fp32, null_draws=3, spectral=false": lambda: analyzing(folder, "fp32", spectral=False),
        }
        rounds = [{task: run() for task, run in tasks.items()} for _ in range(given.rounds)]
    mean = {task: statistics.fmean(each[task] for each in rounds) for task in tasks}
    reduced, whole = list(mean.values())[:2]
    print(f"{'':55s}{'seconds':>8s}{'of reduced svd':>16s}{'of full svd':>13s}")
    for task, seconds in mean.items():
        print(f"{task:55s}{seconds:8.1f}{seconds / reduced:16.2f}{seconds / whole:13.2f}")
    print(f"largest relative difference of singular values from float64: {disagreement(source):.1e}")


if __name__ == "__main__":
    main()
