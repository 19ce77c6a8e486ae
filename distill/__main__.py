"""The process ``distill``, also ``python -m distill`` (the form torchrun and srun start): ready to be stopped."""

from __future__ import annotations

import os
import signal
import sys
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
    return status


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends the process here and now; training, which has something to save, listens for itself."""
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
