"""Who answers what the student is to learn: kinds of teachers behind one protocol."""

from distill.teachers.build import build

__all__ = ["build"]
