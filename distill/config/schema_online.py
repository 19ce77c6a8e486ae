"""The section ``online`` of a run: networks that are trained together with the student, and what they learn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill.config.strict import Strict


class Online(Strict):
    """Online distillation (docs/online_kd.md) with the networks of ``teacher.kind`` `cotrained`.

    Every network learns ``label_weight``·CE + ``logit_weight``·KL(what the others say ‖ what it says).
    """

    method: Literal["dml", "kdcl", "switokd"] = Field(
        "dml", description="learn from each other, from an ensemble of all, or from each other with pauses"
    )
    ensemble: Literal["mean", "min_logit", "naive"] = Field("mean", description="method kdcl: how logits become one")
    lr: float | None = Field(None, gt=0, description="of the co-trained networks; null: optimizer.lr")
    label_weight: float | None = Field(None, ge=0, description="of their losses; null: objective.label_weight")
    logit_weight: float | None = Field(None, ge=0, description="likewise; null: objective.logit_weight")
    frozen_batch_norm: bool | None = Field(
        None, description="images: of their batch normalisation; null: student.frozen_batch_norm"
    )
    export: bool = Field(False, description="write them as models, too, when the run ends: online/NAME/model")
