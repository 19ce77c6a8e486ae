"""TCP connections between every two ranks, over which short JSON messages pass; they meet through a key-value store."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from distill.errors import RunError

LONGEST = 4096
"""Bytes of a message; a peer that sends longer ones, or does not take what it is sent, is not served."""
PATIENCE = 5.0
"""Seconds for a stranger on the open port to say who it is."""
POLL = 0.2


class Store(Protocol):
    """The part of torch's ``Store`` that is needed to find the other ranks."""

    def set(self, key: str, value: str) -> None: ...
    def check(self, keys: list[str]) -> bool: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...


class Links:
    """The connections of one rank, used by one thread at a time. ``who``: the others' hosts and process ids."""

    def __init__(self, peers: dict[int, socket.socket], who: dict[int, tuple[str, int]]) -> None:
        self.who = who
        self._selector = selectors.DefaultSelector()
        self._inbox, self._outbox = dict.fromkeys(peers, b""), dict.fromkeys(peers, b"")
        self._peers = peers
        self._asleep, self._alarm = socket.socketpair()
        self._selector.register(self._asleep, selectors.EVENT_READ, None)
        for rank, peer in peers.items():
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(peer, selectors.EVENT_READ, rank)

    def receive(self, seconds: float) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Messages that come within ``seconds``, with the rank they are from; None where a connection has closed."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                if key.data is None:
                    return
                yield from self._read(key.data)

    def wake(self) -> None:
        """From any thread: there is no more to wait for, now and later. Nobody waits where it is closed already."""
        with suppress(OSError):
            self._alarm.send(b"!")

    def send(self, message: dict[str, Any], wait: float = 0.0) -> None:
        """To every rank, for at most ``wait`` seconds; a rank that has not taken the last message misses this one."""
        line = json.dumps(message).encode() + b"\n"
        until = time.monotonic() + wait
        for rank in self._outbox:
            if wait or not self._outbox[rank]:
                self._outbox[rank] += line
        while True:
            for rank in [*self._peers]:
                self._push(rank)
            if time.monotonic() >= until or not any(self._outbox[rank] for rank in self._peers):
                return
            time.sleep(POLL / 10)

    def close(self) -> None:
        for rank in [*self._peers]:
            self._drop(rank)
        for end in (self._selector, self._asleep, self._alarm):
            end.close()

    def _read(self, rank: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
        try:
            data = self._peers[rank].recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._inbox[rank] = (self._inbox[rank] + data).split(b"\n")
        for line in lines:
            yield rank, json.loads(line)
        if not data or len(self._inbox[rank]) > LONGEST:
            self._drop(rank)
            yield rank, None

    def _push(self, rank: int) -> None:
        if self._outbox[rank]:
            try:
                sent = self._peers[rank].send(self._outbox[rank])
            except BlockingIOError:
                return
            except OSError:
                # A broken connection is noticed where it is read from, after what is left in it; nobody waits for it.
                sent = len(self._outbox[rank])
            self._outbox[rank] = self._outbox[rank][sent:]

    def _drop(self, rank: int) -> None:
        peer = self._peers.pop(rank)
        self._selector.unregister(peer)
        peer.close()


def meet(store: Store, rank: int, world: int, seconds: float) -> Links:
    """Connects this rank with all others: the higher rank of two calls the lower.

    Raises:
        RunError: a rank has not come within ``seconds``, or cannot be reached.
        SystemExit: it has not, and a lower rank says so.
    """
    until = time.monotonic() + seconds
    master = os.environ["MASTER_ADDR"]
    alone = os.environ.get("LOCAL_WORLD_SIZE") == str(world)
    address = "127.0.0.1" if alone else _own_address(master)
    listener = _listener(address, only_here=alone, backlog=world)
    if rank == 0:
        store.set("token", secrets.token_hex(16))
    entry = {"host": socket.gethostname(), "pid": os.getpid(), "address": address, "port": listener.getsockname()[1]}
    store.set(str(rank), json.dumps(entry))
    _wait_for_all(store, rank, world, until, seconds)
    token, *entries = store.multi_get(["token", *map(str, range(world))])
    found = [json.loads(entry) for entry in entries]
    peers = {}
    with listener:
        for other in range(rank):
            addresses = _addresses(found[other], found[rank]["host"], found[0]["host"], master)
            peers[other] = _call(other, addresses, found[other]["port"], _hello(token, rank, other), until)
        while len(peers) < world - 1:
            try:
                other, peer = _answer(listener, token, rank, until)
            except TimeoutError as error:
                missing = min(set(range(world)) - {rank, *peers})
                text = f"rank {missing} has died in phase 'start', or cannot reach rank {rank} at {address} (TCP)."
                raise RunError(text) from error
            peers[other] = peer
    return Links(peers, {other: (found[other]["host"], found[other]["pid"]) for other in peers})


def _wait_for_all(store: Store, rank: int, world: int, until: float, seconds: float) -> None:
    """Polls, because a wait inside the store's client cannot be given up, and its host may be gone."""
    others, pause = [*range(world)], POLL / 100
    while others := [other for other in others if not store.check([str(other)])]:
        if store.check(["given up"]):
            raise SystemExit(1)
        if time.monotonic() > until:
            present = set(range(world)) - set(others)
            if rank != min(present):
                # The lowest speaks; it counts its seconds from its own start.
                until += seconds
                continue
            store.set("given up", "")
            names = f"rank {others[0]} has" if len(others) == 1 else f"ranks {', '.join(map(str, others))} have"
            # The others get to know before the store goes with this process.
            time.sleep(10 * POLL)
            raise RunError(f"{names} not started within {seconds:.0f} s (`trainer.startup_timeout`).")
        time.sleep(pause)
        pause = min(2 * pause, POLL)


def _listener(address: str, only_here: bool, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address if only_here else "", 0), family=family, backlog=backlog)


def _own_address(master: str) -> str:
    """The address by which this machine reaches rank 0's, which is where the others reach it."""
    family, kind, _, _, where = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        # Chooses a route; nothing is sent.
        probe.connect(where)
        return str(probe.getsockname()[0])


def _addresses(entry: dict[str, Any], here: str, first: str, master: str) -> list[str]:
    """Where a rank may answer: rank 0's machine may know itself by a loopback address, and two may share a name."""
    near = [] if entry["host"] != here else ["127.0.0.1"]
    return [*near, *([master] if entry["host"] == first else []), entry["address"]]


def _hello(token: bytes, caller: int, called: int) -> bytes:
    return b"%s %d %d\n" % (token, caller, called)


def _call(rank: int, addresses: Sequence[str], port: int, hello: bytes, until: float) -> socket.socket:
    for address in addresses:
        with suppress(OSError):
            peer = socket.create_connection((address, port), timeout=max(until - time.monotonic(), POLL))
            peer.sendall(hello)
            # It answers when it has called those below itself.
            if peer.recv(1) == b"\n":
                return peer
            peer.close()
    where = " or ".join(dict.fromkeys(addresses))
    raise RunError(f"rank {rank} has died in phase 'start', or cannot be reached at {where}, port {port} (TCP).")


def _answer(listener: socket.socket, token: bytes, rank: int, until: float) -> tuple[int, socket.socket]:
    """The next rank that calls; whoever does not know the run's token is turned away. Raises TimeoutError."""
    while True:
        listener.settimeout(max(until - time.monotonic(), POLL))
        peer, _ = listener.accept()
        with suppress(OSError, ValueError):
            peer.settimeout(PATIENCE)
            words = _line(peer).split()
            if len(words) == 3 and hmac.compare_digest(words[0], token) and int(words[2]) == rank:
                caller = int(words[1])
                peer.sendall(b"\n")
                return caller, peer
        peer.close()


def _line(peer: socket.socket) -> bytes:
    """Up to a line's end, which callers send last."""
    data = b""
    while not data.endswith(b"\n") and len(data) < LONGEST:
        if not (more := peer.recv(LONGEST - len(data))):
            break
        data += more
    return data
