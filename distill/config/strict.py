"""What every schema is made of: models that forbid unknown keys, and the commonest limits."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[\w.+-]+$")]
Filled = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {get_args(part)[0] if get_args(part) else part for part in (annotation, *get_args(annotation))}
        if isinstance(value, bool) and not {int, float}.isdisjoint(kinds):
            raise PydanticKnownError("int_type" if int in kinds else "float_type")
        return value
