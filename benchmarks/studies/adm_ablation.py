"""The keys of ADM, each changed by itself: DML on 300 digits with the terms of docs/adm.md.

The base has what were the defaults when this was asked: α 1, β 0.1, τ 0.1, m 0, channels, centred.
"""

from __future__ import annotations

from benchmarks.studies.harness import Study
from benchmarks.studies.online import ADM, DIGITS, LOOKS, TRAIN, beside

COMMON = (*beside("dml"), *TRAIN, *DIGITS)
CHANGED = {
    "description = classes": "adm.description=classes",
    "center = false": "adm.center=false",
    "temperature = null": "adm.temperature=null",
    "temperature = 0.03": "adm.temperature=0.03",
    "temperature = 0.5": "adm.temperature=0.5",
    "consensus = 0.3": "adm.consensus=0.3",
    "consensus = 3": "adm.consensus=3",
    "divergence = 0": "adm.divergence=0",
    "divergence = 1": "adm.divergence=1",
    "margin = 0.5": "adm.margin=0.5",
}
STUDY = Study(
    question="Is any other value of one key of `adm` better than the one chosen first?",
    arms={"without ADM": COMMON, "base": (*COMMON, *ADM)}
    | {
        name: (*COMMON, *(word for word in ADM if not changed.startswith(word.split("=")[0])), changed)
        for name, changed in CHANGED.items()
    },
    pairs=(
        ("base", "without ADM", "ADM adds to DML"),
        *((name, "base", f"{name} is another than the base") for name in CHANGED),
    ),
    looks=LOOKS,
)
