"""What callbacks.gradient_variance costs, how far its sketch is off, and whether the λ it predicts is the best one.

Usage: python -m benchmarks.gradient_variance [STEPS]   (default: 300)

Costs are seconds of measurements beside those of the rest of the same run, so that other jobs slow down both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import torch

from distill.report.collect import collect
from tests.unit.analysis.test_variance import CURVATURE, RATE, data, excess, of_a_step, optimum, teacher_at

CASES = {
    "offline_kd": ("recipe=offline_kd",),
    "offline_kd, 8 micro-batches": ("recipe=offline_kd", "trainer.micro_batch_size=8"),
    "opd": ("recipe=opd",),
    "speculative_kd": ("recipe=speculative_kd",),
}
COMMON = ("callbacks=none", "data.batch_size=64", "student.path=package://distill/assets/student")
PREFIX = "gradient_variance/"


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    torch.set_num_threads(1)
    print("| run | steps | measurements | seconds each | of the rest of the run |")
    print("|---|--:|--:|--:|--:|")
    for name, words in CASES.items():
        print(cost(name, words, steps), flush=True)
    print("\n| sketch | `sketch_error` | `ce` is off by |\n|--:|--:|--:|")
    for row in sketches():
        print(row, flush=True)
    header = "excess of SGD at λ = 0 | at the predicted λ | at the best λ of a grid"
    print(f"\n| teacher's distance | predicted λ | by other curvatures | {header} |\n|--:|--:|--:|--:|--:|--:|")
    for distance in (0.0, 0.3, 1.0, 3.0):
        print(linear(distance), flush=True)


def records(words: tuple[str, ...]) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "distill", "train", *COMMON, *words, f"hydra.run.dir='{folder}/run'"]
        subprocess.run(command, check=True, capture_output=True)
        return collect(Path(folder) / "run").metrics


def cost(name: str, words: tuple[str, ...], steps: int) -> str:
    found = records((*words, f"trainer.max_steps={steps}", "callbacks.gradient_variance.every_n_steps=100"))
    each = [record["time/gradient_variance"] for record in found if "time/gradient_variance" in record]
    # The one before the first step is not in `time`; the last is.
    rest = found[-1]["time"] - sum(each[1:])
    return f"| {name} | {steps} | {len(each)} | {fmean(each):.2f} | {sum(each) / rest:.1%} |"


def sketches() -> list[str]:
    """Of one measurement, before the first step."""
    sizes, rows = (997, 9973, 65_521), []
    exact = measured(1_000_000)
    for size in sizes:
        found = measured(size)
        off = found[f"{PREFIX}ce"] / exact[f"{PREFIX}ce"] - 1
        rows.append(f"| {size:,} | {found[f'{PREFIX}sketch_error']:.2%} | {abs(off):.2%} |")
    return rows


def measured(size: int) -> dict[str, float]:
    words = ("recipe=offline_kd", "trainer.max_steps=1", f"callbacks.gradient_variance.sketch={size}")
    return records(words)[0]


def linear(distance: float) -> str:
    """Softmax regression: mean squared distance to the optimum of SGD, corrected by a teacher that is not there."""
    x, y = data(2000)
    best = optimum(x, y)
    teacher = teacher_at(distance, best)
    step = of_a_step(best, teacher, x, y)
    predicted, low, high = (step.best(1 + 1 / (RATE * curvature)) for curvature in (CURVATURE, 0.01, 0.1))
    grid = {share: excess(share, teacher, best, x, y) for share in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)}
    least = min(grid, key=lambda share: grid[share])
    at = excess(predicted, teacher, best, x, y)
    start = f"| {distance} | {predicted:.2f} | {low:.2f} to {high:.2f} "
    return f"{start}| {grid[0.0]:.3f} | {at:.3f} | {grid[least]:.3f} (λ = {least}) |"


if __name__ == "__main__":
    main()
