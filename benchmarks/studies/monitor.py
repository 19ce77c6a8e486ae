"""Whether the share of KD that `callbacks.gradient_variance` predicts is the best one for a language model.

The setting that the prediction is about: SGD at a constant rate, small batches, forward KL at temperature 1, judged by
the cross-entropy of held-out answers (the perplexity).
"""

from __future__ import annotations

from benchmarks.studies.addition import EVERY, ONCE, TEACHER, start, started
from benchmarks.studies.harness import ACCURACY, Look, Measure, Study
from distill.report.collect import RunRecord

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
COMMON = (
    *("recipe=offline_kd", *started("half"), "data.limit=10000", *EVERY, ONCE, "data.batch_size=16"),
    *("optimizer=sgd", "optimizer.lr=0.3", "optimizer.schedule=constant", "optimizer.warmup_steps=0"),
    *("trainer.max_steps=600", "callbacks.gradient_variance.every_n_steps=60"),
)
TEACHERS = {"strong": TEACHER, "itself": "{root}/half/model"}
"""One that knows what the student does not, and one that knows nothing more: the student as it starts."""


def _mean(key: str) -> Measure:
    def of(run: RunRecord) -> float | None:
        values = [value for _, value in run.series(f"gradient_variance/{key}")]
        return sum(values) / len(values) if values else None

    return of


def _name(teacher: str, share: float) -> str:
    return f"{teacher} λ = {share}"


STUDY = Study(
    question="Which share λ of KD is best for SGD on an LM, and which one does the monitor predict?",
    before=(start("half", 400),),
    arms={
        _name(teacher, share): (
            *COMMON,
            f"teacher.path={path}",
            f"objective.label_weight={1 - share}",
            f"objective.logit_weight={share}",
        )
        for teacher, path in TEACHERS.items()
        for share in SHARES
    },
    pairs=tuple(
        (_name(teacher, share), _name(teacher, 0.0), f"λ = {share} with the teacher {teacher} is another than 0")
        for teacher in TEACHERS
        for share in SHARES[1:]
    ),
    looks=(
        Look("perplexity", lambda run: run.last("eval/perplexity"), percent=False),
        ACCURACY,
        Look("predicted λ", _mean("lambda"), percent=False),
        Look("upper λ", _mean("lambda_upper"), percent=False),
    ),
)
