"""Mutual learning with and without ADM on 300 digits: what it gives the student, and what it gives the teacher."""

from __future__ import annotations

from benchmarks.studies.online import DIGITS, study

STUDY = study(
    "Digits: does ADM (our formulation) add to DML, KDCL and SwitOKD, and do they add to training alone?", *DIGITS
)
