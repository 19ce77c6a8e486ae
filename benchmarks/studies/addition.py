"""What the studies on three-digit addition share: where students start, how long they train, how they are judged.

The embedded student is at 1 % until it has found out how to add, which takes a number of steps that varies between
seeds; a start beyond that point lets few steps tell arms apart.
"""

from __future__ import annotations

from benchmarks.studies.harness import Step

EVERY = ("data.batch_size=64", "data.eval_size=500", "rollout.max_new_tokens=8")
ONCE = "callbacks.evaluation.every_n_steps=100000"
"""Evaluation before the first step and after the last alone."""
SHAPE = (*EVERY, ONCE, "optimizer.schedule=cosine", "optimizer.warmup_steps=20")
TRAIN = (*SHAPE, "optimizer.lr=1e-3", "trainer.max_steps=300")
TEACHER = "package://distill/assets/teacher"
BARE = ("callbacks.sparsity=null", "callbacks.evaluation=null", "logger.progress=off")


def start(name: str, steps: int, *student: str) -> Step:
    """A student after ``steps`` of fine-tuning on 10,000 sums, in an order that no run of a study has."""
    words = ("train", "recipe=sft", *student, "data.limit=10000", *SHAPE, *BARE, "optimizer.lr=3e-3")
    return Step((*words, "seed=1000", f"trainer.max_steps={steps}", f"hydra.run.dir={{root}}/{name}"), f"{name}/model")


def started(name: str) -> tuple[str, ...]:
    """The words of a run whose student is a :func:`start`."""
    return ("student=path", f"student.path={{root}}/{name}/model")
