"""A real Slurm on this machine alone, for tests: a large node and a small one, with GPU resources that are no GPUs.

    python tests/helpers/slurm_cluster.py DIRECTORY   (then SLURM_CONF=DIRECTORY/slurm.conf sbatch ...; Ctrl-C ends it)

It needs Debian's packages munge, slurmctld, slurmd and slurm-client, and changes nothing of an installed cluster: all
its files are in the directory, and its ports are free ones.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol"]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
ReturnToService=2
KillWait=2
MinJobAge=3600
OverTimeLimit=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=32 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
NodeName=small NodeHostname={host} NodeAddr=127.0.0.1 Port={small_port} CPUs=2 RealMemory=20000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES DefMemPerNode=1000 DefaultTime=10 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={host} PriorityTier=2 DefMemPerNode=1000 DefaultTime=10 State=UP
PartitionName=small Nodes=small DefMemPerNode=1000 DefaultTime=10 MaxTime=30 State=UP
PartitionName=lab Nodes=small AllowAccounts=lab State=UP
"""


def missing() -> list[str]:
    """The programs that a cluster needs and that are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [program for program in PROGRAMS if not shutil.which(program, path=path)]


class Cluster:
    """A cluster that runs from `start` to `stop`; its clients need `environment`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs.

        Raises:
            RuntimeError: it did not start; the text has the ends of the logs.
        """
        for name in ("munge", "state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        # Snakemake's slurm executor takes SLURM_CONF away before it calls srun.
        srun = self.folder / "bin/srun"
        srun.write_text(f"#!/bin/sh\nSLURM_CONF='{self.folder}/slurm.conf' exec '{shutil.which('srun')}' \"$@\"\n")
        srun.chmod(0o755)
        key = self.folder / "munge/key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        names = {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "user": getpass.getuser(),
            "controller_port": _free_port(),
            "node_port": _free_port(),
            "small_port": _free_port(),
        }
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**names))
        gpus = ""
        for number, node in enumerate((names["host"], names["host"], "small")):
            (self.folder / f"gpu{number}").touch()
            gpus += f"NodeName={node} Name=gpu File={self.folder}/gpu{number}\n"
        (self.folder / "gres.conf").write_text(gpus)
        munge = [f"--{name}={self.folder}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *munge)
        self._wait(lambda: (self.folder / "munge/socket").exists())
        self._daemon("slurmctld", "-D")
        for node in (names["host"], "small"):
            (self.folder / "spool" / node).mkdir()
            self._daemon("slurmd", "-D", "-N", node)
        self._wait(lambda: set(self.client("sinfo", "--noheader", "--format=%t").split()) == {"idle"})

    def client(self, *command: str) -> str:
        """What one of Slurm's commands prints; empty if it fails."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.client("scancel", f"--user={getpass.getuser()}")
        deadline = time.monotonic() + 20
        while self.client("squeue", "--noheader").strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("ab")
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        )

    def _wait(self, condition) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            ended = [daemon.args[0] for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out"), *self.folder.glob("munge/log-file")]
                ends = "\n".join(f"{log}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs)
                self.stop()
                raise RuntimeError(f"Slurm does not start (ended: {ended or 'nothing'})\n{ends}")
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> int:
    if lacking := missing():
        print(f"not installed: {', '.join(lacking)}", file=sys.stderr)
        return 1
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        print(__doc__, "\nThe directory must not exist yet.", file=sys.stderr)
        return 1
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    cluster = Cluster(Path(sys.argv[1]).resolve())
    cluster.start()
    print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    cluster.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
