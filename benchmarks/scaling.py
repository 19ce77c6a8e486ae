"""What 8 to 512 ranks would do: communication per step by strategy and teacher placement, and where rollouts dominate.

python benchmarks/scaling.py: counts the bytes of every collective by formula (benchmarks/zero.py counts them as they
happen), measures the phases of the embedded pair on this machine at two batch sizes, checks the model of the phases at
a third, and simulates larger machines: this one's phases as they are, and an H100's on paper (bandwidth and a share of
peak, both stated). Nothing of the second kind was run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

GB = 1e9
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
PLACEMENTS = ("replicated", "sharded")


@dataclass(frozen=True)
class Job:
    """Sizes in parameters and bytes a parameter; ``rows`` and ``micro_rows`` of one rank, lengths in tokens."""

    student: float
    teacher: float
    head: float
    """Parameters of one output embedding, the same for both models (hidden sizes aside)."""
    width: int
    rows: int
    micro_rows: int
    prompt: int
    new_tokens: int

    @property
    def micro_batches(self) -> int:
        return -(-self.rows // self.micro_rows)


REUSE = 1e9
"""Numbers within which DeepSpeed keeps a gathered weight for its next use (stage3_max_reuse_distance)."""


def volume(job: Job, strategy: str, placement: str, gather: str, rollout: bool) -> dict[str, float]:
    """Bytes that each rank sends in one optimizer step, by purpose, up to the factor (ranks - 1)/ranks.

    A ring all-reduce of Ψ numbers sends 2Ψ, a reduce-scatter or an all-gather Ψ. DeepSpeed all-reduces the buckets of
    ZeRO-1 and 2 and scatters what comes out; ZeRO-2 and 3 reduce in every micro-batch. ZeRO-3 gathers the weights for
    the forward pass of each, and again for the backward pass unless the model is small enough to keep them; after a
    rollout it has to learn their order anew.
    """
    psi, count, width = job.student, job.micro_batches, job.width
    generates = rollout and strategy == "zero3"
    gathers = 2 * count if 2 * psi > REUSE else count + generates
    found = {
        "gradients": {"ddp": 2 * psi, "zero1": 2 * psi, "zero2": 2 * psi * count, "zero3": psi * count}[strategy],
        "weights": {"ddp": 0.0, "zero1": psi, "zero2": psi, "zero3": gathers * (psi + job.head)}[strategy],
        "teacher": count * (job.teacher + job.head) if placement == "sharded" else 0.0,
        "rollout": psi * (1 if gather == "model" else job.new_tokens) if generates else 0.0,
    }
    return {purpose: width * numbers for purpose, numbers in found.items()}


@dataclass(frozen=True)
class Phases:
    """Seconds of one rank: ``decode(rows)`` for one token of each row, ``update(rows)`` for everything but rollouts."""

    decode: Callable[[int], float]
    update: Callable[[int], float]


def seconds(job: Job, phases: Phases, sent: dict[str, float], bandwidth: float, ranks: int) -> tuple[float, float]:
    """(rollout, everything) of one step. Communication and computation overlap in the update, not in the rollout."""
    share = (ranks - 1) / ranks / bandwidth
    rollout = job.new_tokens * phases.decode(job.rows) + sent["rollout"] * share
    update = max(phases.update(job.rows), sum(sent.values()) * share - sent["rollout"] * share)
    return rollout, rollout + update


def on_paper(job: Job) -> Phases:
    """An H100: 3.35 TB/s, 40 % of 989 bf16 TFLOP/s in updates, a decode step bound by reading the weights."""
    flops, memory = 0.4 * 989e12, 3.35e12
    tokens = job.prompt + job.new_tokens

    def update(rows: int) -> float:
        return rows * tokens * (6 * job.student + 2 * job.teacher) / flops

    return Phases(lambda rows: 2 * job.student / memory + rows * 2 * job.student / flops, update)


def run(batch: int, folder: Path) -> tuple[float, float]:
    """Median seconds of (rollout, the rest) of a step of the embedded pair with ``batch`` rows, one process."""
    words = ["trainer.max_steps=8", f"data.batch_size={batch}", "callbacks=none", "logger.progress=off"]
    command = [sys.executable, "-m", "distill", "train", *words, f"hydra.run.dir={folder / str(batch)}"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    lines = (folder / str(batch) / "metrics.jsonl").read_text().splitlines()
    timed = [record for record in map(json.loads, lines) if record["step"] > 2]
    rollout = median(record["time/rollout"] for record in timed)
    return rollout, median(record["time/step"] for record in timed) - rollout


def line(a: tuple[float, float], b: tuple[float, float]) -> Callable[[int], float]:
    slope = (b[1] - a[1]) / (b[0] - a[0])
    return lambda rows: a[1] + slope * (rows - a[0])


def measured(new_tokens: int) -> Phases:
    """Phases of this machine, as lines through two batch sizes; prints how well they foretell a third."""
    with tempfile.TemporaryDirectory() as folder:
        small, middle, large = (run(rows, Path(folder)) for rows in (16, 64, 128))
    rollout = line((16, small[0]), (128, large[0]))
    update = line((16, small[1]), (128, large[1]))
    print("\nMeasured here, one thread (s a step): rollout, rest")
    for rows, (seen, rest) in zip((16, 64, 128), (small, middle, large), strict=True):
        print(f"  {rows:>3} rows: {seen:.3f} (line {rollout(rows):.3f}), {rest:.3f} (line {update(rows):.3f})")
    return Phases(lambda rows: rollout(rows) / new_tokens, update)


def table(title: str, job: Job, phases: Phases, bandwidths: tuple[float, float], total_rows: int | None) -> None:
    """``bandwidths``: bytes a second of a rank inside a node of 8, and between nodes."""
    print(f"\n{title}\n| ranks | strategy | teacher | GB sent | rollout s | step s | rollout share | rows/s |")
    print("|--:|---|---|--:|--:|--:|--:|--:|")
    for ranks in (8, 64, 512):
        rows = job.rows if total_rows is None else max(1, total_rows // ranks)
        here = Job(**{**vars(job), "rows": rows, "micro_rows": min(rows, job.micro_rows)})
        for strategy in STRATEGIES:
            for placement in PLACEMENTS if strategy in ("zero2", "zero3") else PLACEMENTS[:1]:
                sent = volume(here, strategy, placement, "model", rollout=True)
                rollout, step = seconds(here, phases, sent, bandwidths[ranks > 8], ranks)
                print(
                    f"| {ranks} | {strategy} | {placement} | {sum(sent.values()) / GB:.2f} | {rollout:.3g} "
                    f"| {step:.3g} | {rollout / step:.0%} | {rows * ranks / step:.3g} |"
                )


def volumes(job: Job) -> None:
    print("\nGB that a rank sends in a step, by purpose")
    print("| recipe | strategy | teacher | gradients | weights | teacher's | rollout: model | rollout: layers |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    for recipe in ("sft", "offline_kd", "opd"):
        for strategy in STRATEGIES:
            for placement in PLACEMENTS if recipe != "sft" and strategy != "ddp" else PLACEMENTS[:1]:
                model, layers = (volume(job, strategy, placement, g, recipe == "opd") for g in ("model", "layers"))
                cells = (model["gradients"], model["weights"], model["teacher"], model["rollout"], layers["rollout"])
                shown = " | ".join(f"{value / GB:.2f}" for value in cells)
                print(f"| {recipe} | {strategy} | {'none' if recipe == 'sft' else placement} | {shown} |")


def main() -> None:
    large = Job(1.5e9, 7.6e9, 0.23e9, width=2, rows=16, micro_rows=4, prompt=256, new_tokens=1024)
    print("A 1.5B student and a 7.6B teacher, bf16, 16 rows of 256 + 1024 tokens a rank in micro-batches of 4")
    volumes(large)
    bandwidths = (450 * GB, 50 * GB)
    table("H100s on paper (450 GB/s in a node, 50 between), 16 rows a rank", large, on_paper(large), bandwidths, None)
    table("The same, 4096 rows in all", large, on_paper(large), bandwidths, 4096)
    small = Job(0.33e6, 0.66e6, 2432, width=4, rows=16, micro_rows=16, prompt=8, new_tokens=5)
    gloo = (1 * GB, 0.1 * GB)
    table("This machine's phases, embedded pair, links of 1 and 0.1 GB/s", small, measured(5), gloo, None)


if __name__ == "__main__":
    main()
