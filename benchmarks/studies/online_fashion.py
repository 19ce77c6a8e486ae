"""Mutual learning with and without ADM on 300 images of Fashion-MNIST, at half their size.

Needs Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

from benchmarks.studies.online import FASHION, study

QUESTION = "Fashion-MNIST: does ADM (our formulation) add to DML, KDCL, SwitOKD, and do they add to training alone?"
STUDY = study(QUESTION, *FASHION)
