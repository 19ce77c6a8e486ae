"""The process ``distill``, also ``python -m distill`` (the form torchrun and srun start): ready to be stopped."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType


def main() -> int:
    """Runs the command line of this process; returns its exit status."""
    # Before anything is imported: a KeyboardInterrupt inside an import ends in other errors, or in an abort.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    from distill import cli

    status = cli.main()
    # When the first rank ends with a status other than 0, srun sends SIGTERM to those that are about to.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "WORLD_SIZE" in os.environ:
        _leave(status)
    return status


def _leave(status: int) -> None:
    """Ends a rank of several without tearing the interpreter down.

    A thread of a library that is inside C++ by then aborts the process ("terminate called without an active
    exception"), which would turn a run that is over into one that has failed. What is registered for the exit runs.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends the process here and now; training, which has something to save, listens for itself."""
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
