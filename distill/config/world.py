"""What the launcher (torchrun, srun) says about this process, without importing torch."""

from __future__ import annotations

import os

from distill.errors import UserError


def world_size() -> int:
    """Number of processes of this run.

    Raises:
        UserError: ``WORLD_SIZE`` is set to something else than a count.
    """
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdecimal() or int(value) < 1:
        raise UserError("WORLD_SIZE", value, "a number of processes")
    return int(value)
