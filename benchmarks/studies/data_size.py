"""Distillation against fine-tuning with more and more data, from a teacher of the same data and a stronger one.

After arXiv 2606.22942: does the gain shrink with data, does a stronger teacher restore it, do smaller students gain
more? Three-digit addition; students start from a short pre-training on other problems of the same kind.
"""

from __future__ import annotations

from benchmarks.studies.harness import Step, Study, last

SIZES = (1000, 10_000, 100_000)
COMMON = (
    *("data.batch_size=128", "data.eval_size=500", "optimizer.lr=2e-3", "optimizer.schedule=cosine"),
    *("optimizer.warmup_steps=20", "trainer.max_steps=400", "rollout.max_new_tokens=8"),
)
QUICK = ("callbacks.sparsity=null", "callbacks.evaluation=null", "logger.progress=off")
STUDENTS = {"small": "{root}/small/model", "large": "package://distill/assets/student"}


def _start(name: str, steps: int, *config: str) -> Step:
    words = ("train", "experiment=embedded_student", *config, f"trainer.max_steps={steps}", *QUICK)
    return Step((*words, f"hydra.run.dir={{root}}/{name}"), f"{name}/model")


def _teacher(size: int) -> Step:
    """A model as large as the strong teacher, trained on the student's rows alone."""
    words = ("train", "recipe=sft", "student=path", "student.path={root}/wide/model", f"data.limit={size}")
    place = f"teacher-{size}"
    return Step((*words, *COMMON, *QUICK, f"hydra.run.dir={{root}}/{place}"), f"{place}/model")


def _arms() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for student, path in STUDENTS.items():
        for size in SIZES:
            words = ("student=path", f"student.path={path}", f"data.limit={size}", *COMMON)
            found[f"{student} {size} sft"] = ("recipe=sft", *words)
            teachers = {"same data": f"{{root}}/teacher-{size}/model", "strong": "package://distill/assets/teacher"}
            for name, teacher in teachers.items():
                found[f"{student} {size} {name}"] = ("recipe=offline_kd", f"teacher.path={teacher}", *words)
    return found


WIDE = ("student.config.hidden_size=128", "student.config.intermediate_size=256", "student.config.num_hidden_layers=4")
SMALL = ("student.config.hidden_size=48", "student.config.intermediate_size=192")
STUDY = Study(
    question="Does distillation gain less over fine-tuning with more data, and does a stronger teacher restore it?",
    before=(_start("small", 600, *SMALL), _start("wide", 900, *WIDE), *(_teacher(size) for size in SIZES)),
    arms=_arms(),
    pairs=tuple(
        (f"{student} {size} {teacher}", f"{student} {size} sft", f"a {teacher} teacher helps a {student} student")
        for student in STUDENTS
        for size in SIZES
        for teacher in ("same data", "strong")
    ),
    measure=last("eval/accuracy"),
    what="accuracy",
)
