"""What is private in torch: the timeout of a process group, changed while it is in use."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore

from distill import distributed
from distill.errors import RunError


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gloo group of one process."""
    monkeypatch.setattr(distributed._watched, "seconds", None)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=100))
    yield
    dist.destroy_process_group()


def timeout(group: dist.ProcessGroup) -> float:
    seconds: float = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return seconds


@pytest.mark.usefixtures("alone")
def test_a_lowered_timeout_reaches_every_group() -> None:
    # DeepSpeed makes groups of its own, which do not take over the first one's timeout.
    other = dist.new_group([0])
    assert timeout(dist.group.WORLD) == 100
    assert timeout(other) != 100
    distributed.set_timeout(7)
    assert timeout(dist.group.WORLD) == timeout(other) == 7


@pytest.mark.usefixtures("alone")
def test_own_collectives_leave_waiting_to_the_watchdog() -> None:
    with distributed._patient():
        assert timeout(dist.group.WORLD) == 100
    distributed.set_timeout(7)
    with distributed._patient():
        assert timeout(dist.group.WORLD) == 24 * 3600
    assert timeout(dist.group.WORLD) == 7


@pytest.mark.usefixtures("alone")
def test_long_phases_leave_waiting_in_libraries_to_the_watchdog() -> None:
    other = dist.new_group([0])
    distributed.set_timeout(7)
    with distributed.patient_libraries():
        distributed.barrier()
        assert timeout(dist.group.WORLD) == timeout(other) == 24 * 3600
    assert timeout(dist.group.WORLD) == timeout(other) == 7


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (dist.DistNetworkError("broken"), True),
        (dist.DistStoreError("timeout"), True),
        (RuntimeError("the size of tensor a must match"), False),
        (ValueError("gloo"), False),
    ],
)
def test_the_errors_of_a_lost_peer_are_known(error: Exception, expected: bool) -> None:
    assert distributed.lost_peer(error) == expected


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed._watched, "store", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**places, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RunError, match=r"rank 0 cannot listen at 127\.0\.0\.1:\d+ "):
            distributed.store(2.0)


def test_a_rank_0_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed._watched, "store", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"rank 0 has not answered at 127\.0\.0\.1:\d+ within 1 s"):
        distributed.store(1.0)


def test_a_rank_without_an_address_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed._watched, "store", None)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(distributed.UserError, match="`MASTER_ADDR` must be set"):
        distributed.store(1.0)
