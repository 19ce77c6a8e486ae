"""What the launcher (torchrun, srun) says about this process, without importing torch."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import MutableMapping

from distill.errors import UserError

FIRST_PORT, PORTS = 10_000, 20_000
"""Below the ports that Linux gives to outgoing connections."""


def world_size() -> int:
    """Number of processes of this run.

    Raises:
        UserError: ``WORLD_SIZE`` is set to something else than a count.
    """
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdecimal() or int(value) < 1:
        raise UserError("WORLD_SIZE", value, "a number of processes")
    return int(value)


def adopt_srun(environment: MutableMapping[str, str] = os.environ) -> None:
    """A task of srun gets the variables that torchrun would have set, so that there is one way to ask for a rank.

    Only the variables of a *step* count: a batch script, ``salloc``'s shell and a login into an allocation see
    ``SLURM_NTASKS`` and ``SLURM_PROCID`` too, but are one process. A task with a terminal is a person's shell.
    ``MASTER_ADDR`` and ``MASTER_PORT`` are left alone where the batch script has set them.

    Raises:
        UserError: the tasks are not spread evenly, or the first node has no address.
    """
    in_step = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    if not in_step or "WORLD_SIZE" in environment or os.isatty(0):
        return
    local = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    environment.update(
        WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
        RANK=environment["SLURM_PROCID"],
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(local),
        GROUP_RANK=environment["SLURM_NODEID"],
    )
    if "MASTER_ADDR" not in environment:
        alone = environment["SLURM_STEP_NUM_NODES"] == "1"
        environment["MASTER_ADDR"] = "127.0.0.1" if alone else address(first_node(environment["SLURM_STEP_NODELIST"]))
    # Jobs that follow each other often share a node, and a port that was taken must not be asked for at every restart.
    restart = int(environment.get("SLURM_RESTART_COUNT", "0"))
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    port = FIRST_PORT + (7 * job + step + 1009 * restart) % PORTS
    environment.setdefault("MASTER_PORT", str(port))


def tasks_per_node(spread: str) -> int:
    """The number of tasks on each node, from SLURM's notation.

    >>> tasks_per_node("4(x2)")
    4

    Raises:
        UserError: they differ.
    """
    counts = {part.split("(")[0] for part in spread.split(",")}
    if len(counts) > 1:
        raise UserError("SLURM_STEP_TASKS_PER_NODE", spread, "one number for all nodes (use srun --ntasks-per-node=N)")
    return int(counts.pop())


def first_node(nodes: str) -> str:
    """The first name of SLURM's notation for a list of nodes.

    >>> first_node("gpu[07-09,12]-a,cpu1")
    'gpu07-a'
    """
    first = re.match(r"(?:[^,[]|\[[^]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0])


def address(node: str) -> str:
    """An IP address of a node, whose name need not resolve: ranks that cannot resolve a name hang without a word.

    Raises:
        UserError: neither the name nor SLURM's address of the node resolves.
    """
    for name in (node, _node_address(node)):
        try:
            return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError:
            continue
    raise UserError("MASTER_ADDR", None, f"set to the address of {node}, where rank 0 runs (its name does not resolve)")


def _node_address(node: str) -> str:
    """What SLURM calls the address of a node: a name or an address; the node's name when SLURM does not say."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "node", "--oneliner", node], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return node
    found = re.search(r"\bNodeAddr=(\S+)", done.stdout)
    return found[1] if found else node
