"""Stands for the process ``distill``: does what ``seed`` and ``optimizer.lr`` ask for, in no time.

A seed of 3 fails, 4 is killed, 5 goes on until it is told to stop, unless a file ``hurry`` lies beside its folder. The
rest records ``loss``, the distance of the
learning rate to 0.01. ``started`` has a line per start: the arguments, and the variables that a job may be given.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

arguments = dict(word.partition("=")[::2] for word in sys.argv[1:])
folder = Path(arguments["hydra.run.dir"].strip('"'))
names = ("OMP_NUM_THREADS", "HYDRA_FULL_ERROR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
with (folder / "started").open("a") as file:
    file.write(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in names}]) + "\n")


def stop(number: int, frame: object) -> None:
    (folder / "saved").touch()
    sys.exit(128 + number)


if arguments["seed"] == "3":
    sys.exit("error: this seed fails")
if arguments["seed"] == "4":
    os.kill(os.getpid(), signal.SIGKILL)
if arguments["seed"] == "5" and "resume" not in arguments and not (folder.parent / "hurry").exists():
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (folder / "waiting").touch()
    time.sleep(60)
loss = abs(float(arguments.get("optimizer.lr", 0)) - 0.01)
(folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss}) + "\n")
