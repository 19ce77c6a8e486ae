"""Whether a model that can read a hint teaches itself to do without it: from its start, or from its live weights.

First the embedded student learns sums, every second one with its result in front (`579 123+456=`): it reads the hint,
but hardly adds. Then it learns from itself, told the result.

Usage: python benchmarks/self_distillation.py [STEPS]   (default: 300)
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from distill.report.collect import RunRecord, collect

ROWS, READING_STEPS = 20_000, 400
COMMON = ["data.eval_size=200", "data.batch_size=128", "rollout.max_new_tokens=8", "callbacks.sparsity=null",
          "optimizer.schedule=cosine", "optimizer.warmup_steps=20"]  # fmt: skip


def main() -> None:
    steps = sys.argv[1] if len(sys.argv) > 1 else "300"
    with tempfile.TemporaryDirectory() as folder:
        rows, reader = Path(folder) / "rows.jsonl", f"{folder}/reader"
        rows.write_text("".join(json.dumps(row) + "\n" for row in sums()))
        start = ["student.path=package://distill/assets/student", f"trainer.max_steps={READING_STEPS}"]
        train(reader, "recipe=sft", "data=text", f"data.path={rows}", "optimizer.lr=2e-3", *start)
        cases = {
            "its start, told": ["recipe=self_distillation"],
            "its start, not told": ["recipe=opd", f"teacher.path={reader}"],
            "itself, told": ["recipe=self_distillation", "teacher=self"],
        }
        print("| teacher | its accuracy | student before | after | entropy after | length after | steps |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        for number, (name, words) in enumerate(cases.items()):
            more = [f"student.path={reader}", "optimizer.lr=1e-3", f"trainer.max_steps={steps}"]
            found = train(f"{folder}/{number}", *words, *more)
            print(f"| {name} | {row(found)} | {steps} |", flush=True)


def sums() -> list[dict[str, str]]:
    draw, found = random.Random(0), []
    for number in range(ROWS):
        a, b = draw.randrange(1000), draw.randrange(1000)
        prompt = f"{a + b} {a}+{b}=" if number % 2 else f"{a}+{b}="
        found.append({"prompt": prompt, "completion": str(a + b), "answer": str(a + b)})
    return found


def train(run_dir: str, *words: str) -> RunRecord:
    command = [sys.executable, "-m", "distill", "train", *words, *COMMON, f"hydra.run.dir='{run_dir}'"]
    subprocess.run(command, check=True, capture_output=True)
    return collect(Path(run_dir))


def row(run: RunRecord) -> str:
    accuracies = [value for _, value in run.series("eval/accuracy")]
    shares = (run.last("eval/teacher_accuracy"), accuracies[0], accuracies[-1])
    cells = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
    return " | ".join([*cells, f"{run.last('student_entropy'):.2f}", f"{run.last('eval/length'):.1f}"])


if __name__ == "__main__":
    main()
