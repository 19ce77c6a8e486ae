"""Keys that hold a number, or a schedule of it over the optimizer steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from distill.config.strict import Fraction, Strict


class Schedule(Strict):
    """``start`` at the first optimizer step, ``end`` at the last of ``steps`` and from there on."""

    start: float
    end: float
    steps: int | None = Field(None, gt=1, description="optimizer steps until the end; null: all of the run")
    shape: Literal["linear", "cosine"] = Field("linear", description="a straight line, or half a cosine")


class OfFraction(Schedule):
    start: Fraction = Field(description="the value of the first step")
    end: Fraction = Field(description="the value of the last step")


class FromZero(Schedule):
    start: float = Field(ge=0, description="the value of the first step")
    end: float = Field(ge=0, description="the value of the last step")


class AboveZero(Schedule):
    start: float = Field(gt=0, description="the value of the first step")
    end: float = Field(gt=0, description="the value of the last step")


def _kind(value: Any) -> str:
    return "schedule" if isinstance(value, dict | Schedule) else "number"


Number, Changing, Either = Tag("number"), Tag("schedule"), Discriminator(_kind)
ScheduledFraction = Annotated[Annotated[Fraction, Number] | Annotated[OfFraction, Changing], Either]
ScheduledFromZero = Annotated[Annotated[float, Field(ge=0), Number] | Annotated[FromZero, Changing], Either]
ScheduledAboveZero = Annotated[Annotated[float, Field(gt=0), Number] | Annotated[AboveZero, Changing], Either]
