"""A real Slurm on this one machine: two virtual nodes on the loopback, without systemd, cgroups or a database."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "setpriv")
NODES = ("n1", "n2")
# Debian keeps the daemons where only root's PATH leads.
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# One CPU a node bounds what runs at a time; both are only counted, as is the memory, which holds a third attempt.
CONFIG = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
EnforcePartLimits=ALL
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=16000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=16000
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
"""


class Missing(Exception):
    """Slurm is not here, and why it cannot be installed."""


def install() -> None:
    """Installs Slurm from the distribution's packages, as root on a Debian; raises Missing elsewhere."""
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=SEARCHED)]
    if not lacking:
        return
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise Missing(f"{', '.join(lacking)} not found; as root on a Debian: apt-get install {' '.join(PACKAGES)}")
    # In runlevel 1 the packages start no services of their own.
    surroundings = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        run = subprocess.run(
            ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *command],
            env=surroundings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if run.returncode != 0:
            raise Missing(f"apt-get {command[0]} failed: {run.stdout[-500:]}")


@dataclass
class Slurm:
    """A running Slurm; `surroundings` are the environment variables that lead a program to it."""

    folder: Path
    surroundings: dict[str, str] = field(default_factory=dict)

    def ask(self, *command: str) -> str:
        """Returns what one of Slurm's commands prints."""
        environment = os.environ | self.surroundings
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
        assert run.returncode == 0, f"{' '.join(command)}: {run.stderr}\n{self.logs()}"
        return run.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Returns all jobs that Slurm remembers."""
        fields = {"id": "%i", "state": "%T", "node": "%N", "minutes": "%l", "memory": "%m", "rule": "%k"}
        shown = self.ask("squeue", "--states=all", "--noheader", "--format=" + "|".join(fields.values()))
        return [dict(zip(fields, line.split("|"), strict=True)) for line in shown.splitlines()]

    def processes(self) -> list[int]:
        """Returns the processes of this Slurm and of its jobs: all that were handed its folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                handed = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                if str(self.folder).encode() in handed:
                    found.append(int(process.name))
        return found

    def processes_of(self, job: str) -> list[int]:
        """Returns the processes of a job."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                if f"SLURM_JOB_ID={job}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def logs(self) -> str:
        """Returns the ends of the daemons' logs."""
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))


def wait_for(what: Callable[[], object], seconds: float, why: Callable[[], str]) -> None:
    """Waits until something is true; fails with a reason."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Returns ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


@contextmanager
def running() -> Iterator[Slurm]:
    """Starts Slurm in a temporary folder; stops it, and whatever its jobs left behind, by pid."""
    install()
    # Short, for the socket's sake, and open to all up to the root, which munge insists on.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    slurm = Slurm(folder)
    daemons: list[subprocess.Popen] = []
    try:
        _start(slurm, daemons)
        yield slurm
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in slurm.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not slurm.processes(), 20, lambda: f"left behind: {slurm.processes()}")
        shutil.rmtree(folder)


def _start(slurm: Slurm, daemons: list[subprocess.Popen]) -> None:
    folder = slurm.folder
    for name in ("bin", "state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    host, ports = socket.gethostname().partition(".")[0], free_ports(1 + len(NODES))
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, ports=ports, user=getpass.getuser(), folder=folder))
    (folder / "munge.key").write_bytes(os.urandom(256))
    (folder / "munge.key").chmod(0o600)
    # Inside of a job the plug-in takes Slurm's variables away, and srun would look for its configuration in /etc.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which("srun", path=SEARCHED)} "$@"\n')
    srun.chmod(0o755)
    slurm.surroundings = {"SLURM_CONF": str(config), "PATH": f"{folder / 'bin'}{os.pathsep}{SEARCHED}"}

    def start(*command: str) -> None:
        # They end with this process, however it ends.
        daemons.append(
            subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=os.environ | slurm.surroundings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def answers(*command: str) -> bool:
        assert all(daemon.poll() is None for daemon in daemons), f"a daemon of Slurm has ended\n{slurm.logs()}"
        environment = os.environ | slurm.surroundings
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
        return run.returncode == 0 and "DOWN" not in run.stdout

    socket_of_munge = f"{folder}/munge.socket"
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    start("munged", "--foreground", "--num-threads=2", f"--socket={socket_of_munge}", *files)
    wait_for(lambda: answers("munge", "-n", "-S", socket_of_munge), 20, slurm.logs)
    start("slurmctld", "-D", "-f", str(config))
    wait_for(lambda: answers("scontrol", "ping"), 30, slurm.logs)
    for node in NODES:
        start("slurmd", "-D", "-N", node, "-f", str(config))
    idle = lambda: slurm.ask("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * len(NODES)
    wait_for(idle, 30, slurm.logs)
