"""The schema of ``distill dashboard``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill.config.strict import Strict

Name = Annotated[str, Field(min_length=1, pattern=r"^[^'\"\\]+$")]
"""Put between quotes in W&B's filters."""


class DashboardConfig(Strict):
    """``distill dashboard``: a W&B workspace and a comparison report about the runs of one project."""

    project: str = Field("distill", min_length=1, description="logger.project of the runs")
    entity: str | None = Field(None, description="logger.entity of the runs; null: the owner of the key")
    name: str = Field("Update sparsity", min_length=1, description="title of both")
    groups: list[Name] = Field(default_factory=list, description="logger.group of runs to compare; a run set each")
    runs: list[Name] = Field(default_factory=list, description="logger.name of runs to compare; a run set each")
    out: str | None = Field(None, description="JSON file in place of W&B; null: W&B, or dashboard.json without a login")
