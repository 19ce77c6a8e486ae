"""What the heartbeat costs a rank: ``python benchmarks/heartbeat.py``. CPU time of one rank's watching thread.

The other ranks are one process that sends a beat for each of them every second over connections of their own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time

from distill import watchdog
from distill.heartbeat import INTERVAL, MANY, Heart
from distill.links import Links
from distill.watchdog import Beat, Limits

SECONDS = 20.0


def measure(world: int, phases_per_second: float) -> float:
    """Seconds of CPU time per second, as rank 0 of ``world``."""
    pairs = {rank: _pair() for rank in range(1, world)}
    peers = os.fork()
    if peers == 0:
        for ours, _ in pairs.values():
            ours.close()
        _others({rank: theirs for rank, (_, theirs) in pairs.items()})
    for _, theirs in pairs.values():
        theirs.close()
    links = Links({rank: ours for rank, (ours, _) in pairs.items()}, {rank: ("node", rank) for rank in pairs})
    heart = Heart(links, 0, Limits(startup=1800.0, train=600.0))
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < SECONDS:
        watchdog.enter("step")
        time.sleep(1 / phases_per_second)
    share = (time.process_time() - used) / (time.monotonic() - began)
    heart.leave(0)
    os.waitpid(peers, 0)
    return share


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        return server.accept()[0], theirs


def _others(ends: dict[int, socket.socket]) -> None:
    count = 0
    try:
        while True:
            for rank, end in ends.items():
                beat = Beat(rank, "node", rank, "rollout", 1, count, count, True)
                end.sendall(json.dumps({"beat": dataclasses.astuple(beat)}).encode() + b"\n")
                end.setblocking(False)
                try:
                    while end.recv(1 << 16):
                        pass
                    os._exit(0)
                except BlockingIOError:
                    end.setblocking(True)
            count += 1
            time.sleep(INTERVAL * max(1.0, len(ends) / MANY))
    finally:
        os._exit(0)


if __name__ == "__main__":
    print("| ranks | phases a second | share of one core |\n|--:|--:|--:|")
    for world, phases in ((2, 1), (2, 50), (8, 5), (64, 5), (512, 5)):
        print(f"| {world} | {phases} | {100 * measure(world, phases):.2f} % |", flush=True)
