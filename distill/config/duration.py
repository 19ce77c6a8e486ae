"""Durations in seconds, or as SLURM writes them: MM:SS, HH:MM:SS, D-HH:MM:SS."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

CLOCK = re.compile(r"(?:(?:(?P<days>\d+)-)?(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)")
UNITS = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}


def seconds(value: Any) -> Any:
    """A number as it is, a text as seconds.

    >>> seconds("1-00:30:00")
    88200

    Raises:
        PydanticCustomError: the text is neither a number nor a time.
    """
    if not isinstance(value, str):
        return value
    if clock := CLOCK.fullmatch(value):
        return sum(int(clock[unit] or 0) * length for unit, length in UNITS.items())
    try:
        return float(value)
    except ValueError:
        raise PydanticCustomError("duration", "seconds or [D-]HH:MM:SS") from None


Duration = Annotated[float, BeforeValidator(seconds), Field(gt=0)]
