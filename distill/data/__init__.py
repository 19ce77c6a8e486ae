"""Training and held-out examples: where they come from, in which order, in which micro-batches."""

from distill.data.build import build, judged
from distill.data.mixture import ids

__all__ = ["build", "ids", "judged"]
