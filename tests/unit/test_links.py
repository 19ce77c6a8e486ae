"""Connections between ranks, which are threads here: messages, closing, strangers, a peer that does not listen."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from distill import links
from distill.errors import RunError
from distill.links import Links, meet


class Store:
    """torch's store, in a dictionary."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.values[key] for key in keys]


@pytest.fixture(params=["1", "3"], ids=["several machines", "one machine"])
def trio(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Links]]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", request.param)
    store, found = Store(), dict[int, Links]()

    def join(rank: int) -> None:
        found[rank] = meet(store, rank, 3, 20.0)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield found
    for one in found.values():
        one.close()


def heard(one: Links, seconds: float = 0.3) -> list[tuple[int, dict[str, Any] | None]]:
    return [*one.receive(seconds)]


def test_a_closed_one_may_be_woken(trio: dict[int, Links]) -> None:
    """The thread that is asked to leave may have left before it is woken."""
    trio[0].close()
    trio.pop(0).wake()


def test_every_rank_hears_every_other(trio: dict[int, Links]) -> None:
    for rank, one in trio.items():
        one.send({"from": rank})
    for rank, one in trio.items():
        assert sorted(heard(one)) == [(other, {"from": other}) for other in range(3) if other != rank]  # type: ignore[type-var]
        assert {host for host, _ in one.who.values()} == {socket.gethostname()}


def test_a_last_word_arrives_before_the_end(trio: dict[int, Links]) -> None:
    trio[1].send({"left": 0}, wait=1.0)
    trio[1].close()
    assert heard(trio[0]) == [(1, {"left": 0}), (1, None)]
    # Once: afterwards there is nothing to hear.
    assert heard(trio[0]) == []


def test_a_rank_that_does_not_listen_holds_up_nobody(trio: dict[int, Links]) -> None:
    for one in trio.values():
        for peer in one._peers.values():
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for number in range(3000):
        trio[0].send({"beat": [number] * 100})
    assert sum(map(len, trio[0]._outbox.values())) < 10_000
    numbers = [message["beat"][0] for _, message in heard(trio[1], 1.0) if message]
    assert numbers == sorted(numbers)
    assert 0 < len(numbers) < 3000


def test_nobody_waits_for_a_rank_that_has_gone(trio: dict[int, Links]) -> None:
    """Whoever leaves last, and has not yet heard that the others have left."""
    for gone in (1, 2):
        trio.pop(gone).close()
    began = time.monotonic()
    # The first is still taken by the system, and answered by a reset.
    for word in ("a beat", "left"):
        trio[0].send({word: 0}, wait=30.0)
        time.sleep(0.05)
    assert time.monotonic() - began < 15
    assert sorted(heard(trio[0]), key=str) == [(1, None), (2, None)]


def test_waking_ends_the_wait(trio: dict[int, Links]) -> None:
    threading.Timer(0.1, trio[0].wake).start()
    assert heard(trio[0], 60.0) == []


def test_who_does_not_know_the_token_is_turned_away() -> None:
    with links._listener("127.0.0.1", only_here=True, backlog=5) as listener:
        where = listener.getsockname()
        strangers = [socket.create_connection(where) for _ in range(3)]
        for stranger, words in zip(strangers, (b"wrong 1 0\n", b"\n", b"token x 0\n"), strict=True):
            stranger.sendall(words)
        friend = socket.create_connection(where)
        friend.sendall(links._hello(b"token", 1, 0))
        rank, peer = links._answer(listener, b"token", 0, links.time.monotonic() + 10)
        assert rank == 1
        assert friend.recv(1) == b"\n"
        assert [stranger.recv(1) for stranger in strangers] == [b"", b"", b""]
        for one in (*strangers, friend, peer):
            one.close()


def test_a_rank_that_does_not_call_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = Store()
    store.set("1", json.dumps({"host": "here", "pid": 1, "address": "127.0.0.1", "port": 9}))
    with pytest.raises(RunError, match="rank 1 has died in phase 'start', or cannot reach rank 0 at"):
        meet(store, 0, 2, 0.3)


def test_a_rank_that_cannot_be_reached_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(
        RunError, match=rf"rank 3 has died in phase 'start', or cannot be reached at 127\.0\.0\.1, port {port}"
    ):
        links._call(3, ["127.0.0.1"], port, b"", links.time.monotonic() + 1)


def test_a_rank_that_does_not_come_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "POLL", 0.01)
    store = Store()
    store.set("0", json.dumps({}))
    with pytest.raises(RunError, match=r"ranks 1, 2 have not started within 0 s \(`trainer\.startup_timeout`\)"):
        links._wait_for_all(store, 0, 3, links.time.monotonic(), 0.0)
    with pytest.raises(SystemExit):
        links._wait_for_all(store, 2, 3, links.time.monotonic(), 0.0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("mine", ["127.0.0.1", "10.0.0.2"]),
        ("first", ["10.0.0.1", "10.0.0.2"]),
        ("third", ["10.0.0.2"]),
    ],
)
def test_where_a_rank_is_looked_for(host: str, expected: list[str]) -> None:
    assert links._addresses({"host": host, "address": "10.0.0.2"}, "mine", "first", "10.0.0.1") == expected
