"""Seconds of `distill analyze` beside three singular value decompositions per matrix, and how far the values agree.

    python -m benchmarks.analysis --layers 30

The checkpoints have the shapes of SmolLM2-135M: a source whose spectrum falls off, an update of low rank plus noise, in
fp32. The decompositions of W, W′ and Δ (`torch.linalg.svd`, fp32, one precision) are what the analysis replaces; it
measures two precisions, coordinates and, with draws, everything once more for each of them. Both use all cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.sparsity import weights
from distill.analysis.decompose import decompose
from distill.commands.analyze import run
from distill.config.schema_analyze import AnalyzeConfig

NORM = 1e-3
"""‖Δ‖/‖W‖ of the update."""


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


def decomposing(source: dict[str, Tensor], trained: dict[str, Tensor], full_matrices: bool) -> tuple[float, float]:
    """Seconds of three decompositions of every matrix but the embedding, and of those of the embedding."""
    spent = {False: 0.0, True: 0.0}
    for name, start in source.items():
        if full_matrices and "embed" in name:
            continue
        for matrix in (start, trained[name], trained[name] - start):
            began = time.perf_counter()
            torch.linalg.svd(matrix, full_matrices=full_matrices)
            spent["embed" in name] += time.perf_counter() - began
    return spent[False], spent[True]


def analyzing(folder: Path, **options: object) -> float:
    paths = {key: str(folder / f"{key}.safetensors") for key in ("source", "trained")}
    config = AnalyzeConfig(**paths, out=str(folder / "out"), **options).model_dump()  # type: ignore[arg-type]
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(config, folder)
    return time.perf_counter() - began


def disagreement(source: dict[str, Tensor]) -> float:
    """The largest relative difference of singular values from those of an exact decomposition in float64."""
    worst = 0.0
    for name, matrix in source.items():
        if "layers.0." in name:
            exact = torch.linalg.svdvals(matrix.double())
            worst = max(worst, float(((decompose(matrix).values - exact) / exact).abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    layers = parser.parse_args().layers
    torch.manual_seed(0)
    source, trained = checkpoints(layers)
    print(
        f"{sum(value.numel() for value in source.values()) / 1e6:.0f} M parameters, {torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(source, folder / "source.safetensors")
        save_file(trained, folder / "trained.safetensors")
        reduced, embedding = decomposing(source, trained, full_matrices=False)
        print(
            f"three svd, full_matrices=False: {reduced + embedding:.1f} s ({embedding:.1f} s the embedding)", flush=True
        )
        plain = analyzing(folder, null_draws=0)
        print(f"analyze, both precisions, null_draws=0: {plain:.1f} s", flush=True)
        print(f"analyze, both precisions, null_draws=3: {analyzing(folder):.1f} s", flush=True)
        print(f"analyze, spectral=false, null_draws=3: {analyzing(folder, spectral=False):.1f} s", flush=True)
        full, _ = decomposing(source, trained, full_matrices=True)
        print(f"three svd, full_matrices=True, without the embedding (10 GB for its U): {full:.1f} s", flush=True)
    print(f"ratio, six svd per matrix (both precisions, as the analysis): {2 * (reduced + embedding) / plain:.2f}")
    print(f"ratio, three svd per matrix in one precision: {(reduced + embedding) / plain:.2f}")
    print(f"largest relative difference of singular values from float64: {disagreement(source):.1e}")


if __name__ == "__main__":
    main()
