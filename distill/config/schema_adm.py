"""The section ``adm`` of a run: feature terms beside its objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill.config.strict import Strict

Description = Literal["relations", "channels", "classes"]


class Adm(Strict):
    """Consensus of a student with its teacher, divergence of a teacher that is trained with it, location by location:
    our formulation (docs/adm.md)."""

    consensus: float = Field(1.0, ge=0, description="weight of the student's term")
    divergence: float = Field(0.0, ge=0, description="weight of a co-trained teacher's term")
    margin: float = Field(0.0, ge=-1, lt=1, description="cosine below which a location is left to diverge no further")
    temperature: float | None = Field(
        0.5, gt=0, description="τ of the softmax that weighs locations by their agreement; null: all alike"
    )
    description: Description | None = Field(
        None,
        description="what is compared: cosines to a sample's other locations, channels, or logits of a location; "
        "null: relations of images, channels of texts",
    )
    center: bool = Field(False, description="take off what all locations of a sample have in common")
    student_layer: str | None = Field(None, description="name of a module; null: the backbone's last states")
    teacher_layer: str | None = None
