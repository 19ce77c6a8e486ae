"""Which share of a teacher's gradient is best where a model is not linear: a perceptron with a hidden layer, on digits.

benchmarks/kd_variance.py has softmax regression, of which the theory is. Here students go on from weights that SGD at a
constant rate has brought to the level of its noise. One teacher comes from the same weights, by a rate that falls to 0;
the other one from a start of its own, so that its gradients are of other weights.
"""

from __future__ import annotations

from benchmarks.studies.harness import ACCURACY, Look, Step, Study
from distill.report.collect import RunRecord

SHARES = (0.3, 0.6, 0.9)
COMMON = (
    *("task=image_classification", "data.batch_size=10", "data.mean=[0]", "data.std=[1]", "data.eval_size=359"),
    *("optimizer=sgd", "optimizer.lr=0.3", "optimizer.weight_decay=1e-3", "optimizer.warmup_steps=0"),
    *("trainer.gradient_clip_val=null", "callbacks.evaluation.every_n_steps=100000"),
)
DRAWN = ("student.config={{model_type: mlp, hidden_sizes: [32], activation: relu}}",)
FROM_START = ("student=path", "student.path={root}/start/model")
RUN = (*COMMON, *FROM_START, "optimizer.schedule=constant", "trainer.max_steps=600", "trainer.log_every_n_steps=1")
LATE = 300
"""Steps at the end, of whose batches the loss is averaged; every arm of a seed has the same batches."""
WITHOUT = "λ = 0"


def _trained(name: str, *words: str) -> Step:
    quiet = ("callbacks.sparsity=null", "callbacks.checkpoint=null", "logger.progress=off")
    return Step(("train", "recipe=sft", *COMMON, *words, *quiet, f"hydra.run.dir={{root}}/{name}"), f"{name}/model")


def late_loss(run: RunRecord) -> float | None:
    values = [value for _, value in run.series("ce")][-LATE:]
    return sum(values) / len(values) if values else None


def _name(teacher: str, share: float) -> str:
    return f"{teacher}, λ = {share}"


TEACHERS = {"same start": "teacher", "own start": "other"}
STUDY = Study(
    question="Which share λ of a teacher's gradient takes noise off SGD for a perceptron with a hidden layer?",
    before=(
        _trained("start", *DRAWN, "seed=1000", "optimizer.schedule=constant", "trainer.max_steps=3000"),
        _trained("teacher", *FROM_START, "seed=1001", "optimizer.schedule=cosine", "trainer.max_steps=3000"),
        _trained("other", *DRAWN, "seed=2000", "optimizer.schedule=cosine", "trainer.max_steps=6000"),
    ),
    arms={WITHOUT: ("recipe=sft", *RUN)}
    | {
        _name(teacher, share): (
            "recipe=kd_variance",
            *RUN,
            f"teacher.path={{root}}/{folder}/model",
            f"variance_reduction.weight={share}",
        )
        for teacher, folder in TEACHERS.items()
        for share in SHARES
    },
    pairs=tuple(
        (_name(teacher, share), WITHOUT, f"λ = {share} of a teacher with the {teacher} lowers the loss")
        for teacher in TEACHERS
        for share in SHARES
    ),
    looks=(Look("training loss of the last 300 steps", late_loss, percent=False), ACCURACY),
)
