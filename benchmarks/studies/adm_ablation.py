"""The keys of ADM, each changed by itself from the defaults of ``recipe=online_adm``: DML on 300 digits."""

from __future__ import annotations

from benchmarks.studies.harness import Study
from benchmarks.studies.online import DIGITS, LOOKS, TRAIN, beside

COMMON = (*TRAIN, *DIGITS)
WITHOUT, DEFAULTS = "without ADM", "defaults"
CHANGED = (
    "description=channels",
    "description=classes",
    "center=true",
    "temperature=null",
    "temperature=0.1",
    "consensus=0.3",
    "consensus=3",
    "divergence=0",
    "divergence=1",
    "margin=0.5",
)
STUDY = Study(
    question="Is any other value of one key of `adm` better than its default, and is any better than no ADM?",
    arms={WITHOUT: (*beside("online_kd", "dml"), *COMMON), DEFAULTS: (*beside("online_adm", "dml"), *COMMON)}
    | {changed: (*beside("online_adm", "dml"), *COMMON, f"adm.{changed}") for changed in CHANGED},
    pairs=(
        *((changed, DEFAULTS, f"{changed} is another than the default") for changed in CHANGED),
        *((name, WITHOUT, f"{name}: ADM adds to DML") for name in (DEFAULTS, *CHANGED)),
    ),
    looks=LOOKS,
)
