"""A SLURM of two nodes on this machine: munged, slurmctld and two slurmd, started by hand and ended by their pids."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PACKAGES = "slurmctld slurmd slurm-client munge"
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ctld}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
AuthType=auth/munge
# A requeued job waits until its old credential has expired: 120 s by default.
AuthInfo=socket={root}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
{preemption}
SchedulerParameters=sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MinJobAge=3600
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={port1} CPUs=2
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={port2} CPUs=2
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


@dataclass
class Cluster:
    """A running cluster; ``environment`` is what its clients need."""

    root: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """What a client program prints.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """The fields of ``scontrol show job``."""
        words = self.ask("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Waits until a job is in one of the states; returns its fields."""
        deadline = time.monotonic() + seconds
        while (fields := self.job(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{fields}\n{self.logs()}"
            time.sleep(0.3)
        return fields

    def logs(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()[-3000:]}" for path in sorted(self.root.glob("*.log")))


@contextmanager
def started(preemption: str = "SlurmctldParameters=preempt_send_user_signal") -> Iterator[Cluster]:
    """Two idle nodes; everything started is ended, and the state deleted, when the context ends.

    ``preemption`` is a line of slurm.conf: without the default one a preempted job gets SIGTERM, not its own signal.
    """
    # Not pytest's tmp_path: the path of a Unix socket has at most 107 characters.
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    root.chmod(0o755)
    processes = list[subprocess.Popen[bytes]]()
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(root / "slurm.conf")}
    cluster = Cluster(root, environment)

    def start(*command: str) -> None:
        out = (root / f"{Path(command[0]).name}-{len(processes)}.out.log").open("wb")
        processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True))

    try:
        _configure(root, preemption)
        paths = (f"--{name}-file={root}/munge.{name}" for name in ("key", "pid", "seed", "log"))
        start("munged", "--foreground", f"--socket={root}/munge.socket", *paths)
        _until(lambda: (root / "munge.socket").exists(), cluster)
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D", "-N", "n1")
        start("slurmd", "-D", "-N", "n2")
        _until(lambda: _idle(cluster), cluster)
        yield cluster
    finally:
        _end(processes, cluster)
        shutil.rmtree(root)


def _configure(root: Path, preemption: str) -> None:
    key = root / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    for name in ("state", "spool-n1", "spool-n2"):
        (root / name).mkdir()
    ctld, port1, port2 = _free_ports(3)
    values = {"host": socket.gethostname(), "user": getpass.getuser(), "root": root, "preemption": preemption}
    (root / "slurm.conf").write_text(CONF.format(**values, ctld=ctld, port1=port1, port2=port2))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _idle(cluster: Cluster) -> bool:
    command = ("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T")
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    return done.stdout.split() == ["idle", "idle"]


def _until(condition: Callable[[], bool], cluster: Cluster) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.1)


def _end(processes: list[subprocess.Popen[bytes]], cluster: Cluster) -> None:
    """Ends jobs, then the daemons in the opposite order; a job's slurmstepd ends with its job."""
    if len(processes) > 1:
        subprocess.run(
            ["scancel", f"--user={getpass.getuser()}"], env=cluster.environment, capture_output=True, check=False
        )
        command = ("squeue", "--noheader", "--format=%i")
        for _ in range(150):
            if not subprocess.run(command, env=cluster.environment, capture_output=True, check=False).stdout.strip():
                break
            time.sleep(0.2)
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
