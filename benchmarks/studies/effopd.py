"""Extrapolation (EffOPD, arXiv 2605.11739): how many steps of on-policy distillation it saves until an accuracy."""

from __future__ import annotations

from benchmarks.studies.addition import EVERY, start, started
from benchmarks.studies.harness import Look, Study, steps_to

LEVEL = 0.5
COMMON = (
    *("recipe=opd", *EVERY, "optimizer.lr=5e-4", "optimizer.schedule=constant", *started("half")),
    *("trainer.max_steps=400", "callbacks.evaluation.every_n_steps=8"),
)
STUDY = Study(
    question=f"Steps of on-policy distillation until {LEVEL:.0%} accuracy, with and without extrapolation.",
    before=(start("half", 400),),
    arms={"opd": COMMON, "effopd": (*COMMON, "callbacks=effopd")},
    pairs=(("effopd", "opd", "extrapolation takes fewer steps"),),
    looks=(Look(f"steps to {LEVEL:.0%}", steps_to("eval/accuracy", LEVEL), percent=False),),
)
