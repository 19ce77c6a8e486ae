"""Extrapolation (EffOPD, arXiv 2605.11739): how many steps of on-policy distillation it saves until an accuracy."""

from __future__ import annotations

from benchmarks.studies.harness import Study, steps_to

LEVEL = 0.5
COMMON = (
    *("recipe=opd", "data.batch_size=64", "data.eval_size=300", "optimizer.lr=5e-4", "optimizer.schedule=constant"),
    *("trainer.max_steps=400", "rollout.max_new_tokens=8", "callbacks.evaluation.every_n_steps=16"),
)
STUDY = Study(
    question=f"Steps of on-policy distillation until {LEVEL:.0%} accuracy, with and without extrapolation.",
    arms={"opd": COMMON, "effopd": (*COMMON, "callbacks=effopd")},
    pairs=(("effopd", "opd", "extrapolation takes fewer steps"),),
    measure=steps_to("eval/accuracy", LEVEL),
    what=f"steps to {LEVEL:.0%}",
    percent=False,
)
