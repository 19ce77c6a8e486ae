"""Durations as numbers and as SLURM writes them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from distill.config.duration import Duration

ADAPTER: TypeAdapter[float] = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(90, 90), (0.5, 0.5), ("90", 90), ("01:30", 90), ("1:00:01", 3601), ("2-00:00:10", 172_810)],
)
def test_seconds(value: Any, seconds: float) -> None:
    assert ADAPTER.validate_python(value) == seconds


@pytest.mark.parametrize("value", [0, -1, "0:00", "soon", "1-30", "1:2:3:4", "-1:00"])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(value)
