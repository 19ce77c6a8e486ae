"""Distillation against fine-tuning with more and more data, from a teacher of the same data and a stronger one.

After arXiv 2606.22942: does the gain shrink with data, does a stronger teacher restore it, do smaller students gain
more?
"""

from __future__ import annotations

from benchmarks.studies.addition import BARE, TEACHER, TRAIN, start, started
from benchmarks.studies.harness import Step, Study

SIZES = (300, 3000, 30_000)
SMALL = ("student=llama_tiny", "student.config.hidden_size=64", "student.config.intermediate_size=256")
STUDENTS: dict[str, tuple[str, ...]] = {"small": (*SMALL, "student.config.num_hidden_layers=2"), "large": ()}
STARTED = {"small": 800, "large": 400}
"""Steps after which each adds some sums; the small one is drawn at random."""
TEACHERS = {"same data": "{root}/teacher-SIZE/model", "strong": TEACHER}


def _teacher(size: int) -> Step:
    """The large student, trained three times as long on the student's rows alone."""
    words = ("train", "recipe=sft", *started("large"), f"data.limit={size}", *TRAIN, *BARE, "trainer.max_steps=900")
    return Step((*words, "seed=1001", f"hydra.run.dir={{root}}/teacher-{size}"), f"teacher-{size}/model")


def _arms() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for student in STUDENTS:
        for size in SIZES:
            words = (*started(student), f"data.limit={size}", *TRAIN)
            found[f"{student} {size} sft"] = ("recipe=sft", *words)
            for name, path in TEACHERS.items():
                teacher = f"teacher.path={path.replace('SIZE', str(size))}"
                found[f"{student} {size} {name}"] = ("recipe=offline_kd", teacher, *words)
    return found


def _gain(student: str, size: int, teacher: str) -> tuple[str, str]:
    return f"{student} {size} {teacher}", f"{student} {size} sft"


def _contrasts() -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
    """The three questions: less gain with more data, more from a stronger teacher there, more for a small student?"""
    fewest, most = SIZES[0], SIZES[-1]
    found = {
        f"gain on {fewest} − on {most}: {student}, {teacher}": (
            _gain(student, fewest, teacher),
            _gain(student, most, teacher),
        )
        for student in STUDENTS
        for teacher in TEACHERS
    }
    found |= {
        f"strong − same data on {most}: {student}": (_gain(student, most, "strong"), _gain(student, most, "same data"))
        for student in STUDENTS
    }
    return found | {
        f"small − large, strong teacher, {size}": (_gain("small", size, "strong"), _gain("large", size, "strong"))
        for size in SIZES
    }


STUDY = Study(
    question="Does distillation gain less over fine-tuning with more data, and does a stronger teacher restore it?",
    before=(
        *(start(name, STARTED[name], *config) for name, config in STUDENTS.items()),
        *(_teacher(size) for size in SIZES),
    ),
    arms=_arms(),
    pairs=tuple(
        (f"{student} {size} {teacher}", f"{student} {size} sft", f"a {teacher} teacher helps a {student} student")
        for student in STUDENTS
        for size in SIZES
        for teacher in TEACHERS
    ),
    contrasts=_contrasts(),
)
