"""A callback that makes one rank slower than the others, so that a signal finds them at different places."""

from __future__ import annotations

import os
import time
from typing import Any

import lightning as L


class SlowRank(L.Callback):
    def __init__(self, rank: int, seconds: float) -> None:
        self.rank, self.seconds = str(rank), seconds

    def on_train_batch_start(self, *_: Any) -> None:
        if os.environ["RANK"] == self.rank:
            time.sleep(self.seconds)
