"""A real Slurm of two nodes on one host: munged, slurmctld and two slurmd in a process namespace.

Whatever happens, nothing of it outlives the test: the namespace ends with its first process, and
that one with the test's.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import free_port

# One CPU a node: a job on both nodes has them to itself, and one in `urgent` preempts it. The
# preempted one has the grace time to save.
CONFIGURATION = """\
ClusterName=lockstep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first_job}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2
"""

DAEMONS = """
munged --force --foreground --num-threads=1 --socket="$1/munge.socket" --key-file="$1/munge.key" \
    --pid-file="$1/munge.pid" --seed-file="$1/munge.seed" --log-file="$1/munge.log" &
until [[ -S $1/munge.socket ]]; do sleep 0.01; done
for daemon in slurmctld 'slurmd -N node0' 'slurmd -N node1'; do
    $daemon -D -f "$1/slurm.conf" -L "$1/daemons.log" &
done
wait
"""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")


def lacking() -> str:
    """Why there can be no Slurm here; empty when there can."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "setpriv")
    search = f"{os.environ['PATH']}:/usr/sbin"
    if os.geteuid() != 0 or not all(shutil.which(name, path=search) for name in programs):
        return "a Slurm of its own needs root and the packages slurm-wlm and munge"
    tried = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True
    )
    return f"no process namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Slurm:
    """The cluster under `folder`, as its users see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            **{name: value for name, value in os.environ.items() if name[:5] != "SLURM"},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "VIRTUAL_ENV": os.environ.get("VIRTUAL_ENV", sys.prefix),
            "NPROC": "1",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *command: str, cwd: Path | None = None) -> str:
        """What a command of Slurm's says; it must succeed."""
        done = subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, repository: Path, *words: str) -> str:
        """The number of the job `sbatch words` from `repository`; its output goes to `said`."""
        output = (
            f"--output={self.folder}/%A.%a.out"
            if "--array" in words[0]
            else (f"--output={self.folder}/%j.out")
        )
        return self("sbatch", "--parsable", output, *words, cwd=repository)

    def said(self, job: str) -> str:
        file = self.folder / f"{job.replace('_', '.')}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, ExitCode, Restarts, ..."""
        words = self("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, job: str, *states: str, restarts: int = 0) -> str:
        """The exit code of a job as soon as its state is one of `states` after so many restarts."""
        limit = time.monotonic() + 120
        while True:
            known = self.show(job)
            if known["JobState"] in states and int(known["Restarts"]) == restarts:
                return known["ExitCode"]
            told = f"{states} expected after {restarts} restarts: {known}\n{self.said(job)}"
            assert time.monotonic() < limit and int(known["Restarts"]) <= restarts, told
            assert known["JobState"] not in ENDED, told
            time.sleep(0.05)

    def start_now(self, job: str, *, restarts: int) -> None:
        """Start a requeued job, which Slurm would hold back for two minutes."""
        limit = time.monotonic() + 60
        time.sleep(2)  # slurmd counts in seconds: a start in the second of the last end is revoked
        while self.show(job)["JobState"] == "PENDING":
            # Slurm sets the time anew when the last node is done with the job's earlier start.
            command = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
            subprocess.run(command, env=self.env, capture_output=True)
            assert time.monotonic() < limit, f"{self.show(job)}"
            time.sleep(0.2)
        self.until(job, "RUNNING", restarts=restarts)


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """A Slurm that takes jobs."""
    for name in ("state", "node0", "node1"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            host=socket.gethostname(),
            ports=[free_port() for _ in range(3)],
            first_job=1 + os.getpid() % 9000,  # the ports of two clusters' jobs differ
        )
    )
    slurm = Slurm(folder)
    with (folder / "start.log").open("w") as log:
        namespace = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child",
             "--mount-proc", "bash", "-c", DAEMONS, "daemons", str(folder)],
            env=slurm.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        limit = time.monotonic() + 30
        while _idle_nodes(slurm) != 2:
            assert namespace.poll() is None and time.monotonic() < limit, "".join(
                file.read_text() for file in sorted(folder.glob("*.log"))
            )
            time.sleep(0.1)
        yield slurm
    finally:
        namespace.kill()
        namespace.wait()


def _idle_nodes(slurm: Slurm) -> int:
    command = ["sinfo", "--noheader", "--partition=usual", "--states=idle", "--format=%D"]
    said = subprocess.run(command, env=slurm.env, capture_output=True, text=True).stdout
    return int(said) if said.strip().isdigit() else 0
