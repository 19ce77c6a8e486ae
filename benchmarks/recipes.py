"""What each recipe costs beside fine-tuning, and how its student gets on: the embedded models, one seed, one thread.

    python -m benchmarks.recipes FOLDER [--steps 600] [--plots docs/recipes]

Prints a table for docs/recipes.md (median seconds of a step, peak memory of the process, accuracy at the end) and draws
one picture per recipe: accuracy over steps, beside fine-tuning's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from distill.figures import canvas
from distill.report.collect import RunRecord, collect

COMMON = (
    *("callbacks.evaluation.every_n_steps=50", "callbacks.sparsity=null", "data.limit=50000"),
    *("callbacks.checkpoint=null", "logger.progress=off"),
)
TEACHERS = "{near: {path: package://distill/assets/teacher}, far: {path: package://distill/assets/student}}"
RECIPES = {
    "sft": ("recipe=sft",),
    "offline_kd": ("recipe=offline_kd",),
    "offline_kd_cached": ("recipe=offline_kd", "teacher=cached", "teacher.cache={folder}/cache"),
    "opd": ("recipe=opd",),
    "speculative_kd": ("recipe=speculative_kd", "rollout.accept_top_k=3"),
    "self_distillation": ("recipe=self_distillation",),
    "multi_teacher": ("recipe=multi_teacher", f"teacher.members={TEACHERS}"),
    "effopd": ("callbacks=effopd",),
    "subnetwork": ("recipe=[sft,subnetwork]", "callbacks.update_mask.path={folder}/mask.safetensors"),
    "two_stage": ("recipe=two_stage",),
}
RUN = "import json, resource, sys; from distill import cli; status = cli.main(json.loads(sys.argv[1])); \
print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"


def distill(*words: str) -> float:
    """Runs one command in a process of its own; its peak memory in MB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(words)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"distill {' '.join(words)}\n{done.stdout}{done.stderr}")
    return float(done.stdout.split("peak ")[-1]) / 1024


def prepare(folder: Path) -> None:
    """The cache of ``offline_kd_cached`` and the mask of ``subnetwork``, from a short run of fine-tuning."""
    if not (folder / "cache" / "manifest.json").exists():
        distill("cache", "recipe=offline_kd", "data.limit=50000", f"cache.out={folder}/cache", "logger.progress=off")
    if not (folder / "mask.safetensors").exists():
        distill("train", "recipe=sft", *COMMON, "trainer.max_steps=30", f"hydra.run.dir={folder}/short")
        paths = (f"source={folder}/short/source", f"trained={folder}/short/model")
        distill("mask", "rule=low", paths[0], "density=0.2", f"out={folder}/mask.safetensors")


def seconds(run: RunRecord) -> float:
    """The median of all steps, rollouts included: the few that are evaluated do not move it."""
    return statistics.median(value for _, value in run.series("time/step"))


def draw(name: str, run: RunRecord, beside: RunRecord, path: Path) -> None:
    figure = canvas.sheet(5.2, 2.6)
    axes = figure.subplots()
    for record, colour, label in ((beside, canvas.MUTED, "sft"), (run, canvas.OBSERVED, name)):
        points = record.series("eval/accuracy")
        axes.plot(*zip(*[(step, 100 * value) for step, value in points], strict=True), "o-", color=colour, label=label)
    teacher = run.first("eval/teacher_accuracy")
    if teacher is not None:
        axes.axhline(100 * teacher, color=canvas.NULL, linestyle=":", label="teacher")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8, frameon=False)
    canvas.dress(axes)
    canvas.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--plots", type=Path, help="folder for the pictures")
    given = parser.parse_args()
    folder = given.folder.absolute()
    prepare(folder)
    found: dict[str, tuple[RunRecord, float]] = {}
    for name, words in RECIPES.items():
        line = [word.format(folder=folder) if "{folder}" in word else word for word in words]
        steps = f"trainer.max_steps={given.steps}"
        peak = distill("train", *line, *COMMON, steps, f"hydra.run.dir={folder}/{name}")
        found[name] = collect(folder / name), peak
    sft = found["sft"][0]
    print("| recipe | seconds per step | × sft | peak memory, MB | accuracy at the end |\n|---|--:|--:|--:|--:|")
    for name, (run, peak) in found.items():
        each, accuracy = seconds(run), run.last("eval/accuracy") or 0.0
        print(f"| {name} | {each:.3f} | {each / seconds(sft):.2f} | {peak:.0f} | {100 * accuracy:.1f} % |")
        if given.plots:
            given.plots.mkdir(parents=True, exist_ok=True)
            draw(name, run, sft, given.plots / f"{name}.png")


if __name__ == "__main__":
    main()
