"""A task of srun gets torchrun's variables; a shell in an allocation, which has SLURM's too, does not."""

from __future__ import annotations

import os
import socket

import pytest

from distill.config import world
from distill.errors import UserError

ALLOCATION = {"SLURM_JOB_ID": "123", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = ALLOCATION | {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "localhost,other",
}


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: False)


def test_a_task_learns_its_rank() -> None:
    environment = dict(STEP)
    world.adopt_srun(environment)
    assert {name: value for name, value in environment.items() if name not in STEP} == {
        "WORLD_SIZE": "4",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "MASTER_ADDR": socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)[0][4][0],
        "MASTER_PORT": "10861",
    }


@pytest.mark.parametrize(
    ("changed", "port"),
    [
        ({"SLURM_JOB_ID": "124"}, "10868"),
        ({"SLURM_STEP_ID": "1"}, "10862"),
        ({"SLURM_RESTART_COUNT": "1"}, "11870"),
        ({"SLURM_JOB_ID": "20123"}, "10861"),
    ],
)
def test_jobs_steps_and_restarts_have_ports_of_their_own(changed: dict[str, str], port: str) -> None:
    environment = STEP | changed
    world.adopt_srun(environment)
    assert environment["MASTER_PORT"] == port


def test_what_the_batch_script_has_set_stays() -> None:
    environment = STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    world.adopt_srun(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "5")


@pytest.mark.parametrize("environment", [{}, ALLOCATION, STEP | {"WORLD_SIZE": "8"}])
def test_other_processes_are_left_alone(environment: dict[str, str]) -> None:
    before = dict(environment)
    world.adopt_srun(environment)
    assert environment == before


def test_a_shell_of_srun_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    environment = dict(STEP)
    world.adopt_srun(environment)
    assert environment == STEP


def test_tasks_spread_unevenly_are_refused() -> None:
    with pytest.raises(UserError, match="one number for all nodes"):
        world.adopt_srun(STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1"})


def test_a_node_that_does_not_resolve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"`MASTER_ADDR` must be set to the address of no\.such\.node\.invalid"):
        world.adopt_srun(STEP | {"SLURM_STEP_NODELIST": "no.such.node.invalid"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[07-09,12]-a,cpu1", "gpu07-a"), ("a,b", "a"), ("r[1,3]n[2-4],x", "r1n2")],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert world.first_node(nodes) == first
