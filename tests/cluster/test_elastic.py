"""Hosts that come and go: several launch.sh on this one, each with an agent of its own.

./launch.sh test -m cluster tests/cluster/test_elastic.py
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.runs import QUICK, run
from tests.trained import NOTES, sequence, starts

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 20
OPTIONS = (*QUICK, *NOTES, "save.every_steps=4", f"train.epochs={EPOCHS}")


class Job:
    """An elastic job of hosts with one rank each, in `folder`, slow until told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / "trained"
        self.notes.mkdir()
        self.slow = self.notes / "slow"
        self.slow.write_text("0.2")
        self.hosts: list[subprocess.Popen[str]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(
        self, number: int, *arguments: str, root: Path = ROOT, **env: str
    ) -> subprocess.Popen[str]:
        """Host `number` joins, with the code that is in `root`."""
        said = (self.folder / f"said {len(self.hosts)}").open("w")
        host = subprocess.Popen(
            [root / "launch.sh", *OPTIONS, f"run.dir={self.folder}", "run.name=x", *arguments],
            env={
                **os.environ,
                "VIRTUAL_ENV": os.environ.get("VIRTUAL_ENV", sys.prefix),
                "NNODES": "1:2",
                "NODE_RANK": str(number),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
                "NPROC": "1",
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "TRAINED": str(self.notes),
                **env,
            },
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said.close()
        self.hosts.append(host)
        return host

    def said(self, number: int = 0) -> str:
        return (self.folder / f"said {number}").read_text()

    def rows(self) -> list[dict]:
        file = self.folder / "x" / "metrics.jsonl"
        text = file.read_text() if file.is_file() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def steps_on(self, size: int) -> int:
        """How many steps the newest start of `size` ranks has taken."""
        some = [start for start in starts(self.notes) if start.size == size]
        return len(list(some[-1].steps())) if some else 0

    def until(self, reached: Callable[[], bool]) -> None:
        limit = time.monotonic() + 120
        while not reached():
            assert self.hosts[0].poll() is None and time.monotonic() < limit, self.said()
            time.sleep(0.05)

    def code(self, host: subprocess.Popen[str]) -> int:
        return host.wait(timeout=120)

    def kill(self, host: subprocess.Popen[str]) -> None:
        """SIGKILL for every process of a host at once."""
        for process in [host.pid, *below(host.pid)]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        host.wait()


def below(process: int) -> list[int]:
    """The children of `process`, and theirs."""
    children: list[int] = []
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, tasks.read_text().split())
    return [one for child in children for one in (child, *below(child))]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    for host in made.hosts:
        if host.poll() is None:
            made.kill(host)


def unbroken(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What a run without any change of hosts trains on."""
    notes = job.folder / "unbroken trained"
    notes.mkdir()
    monkeypatch.setenv("TRAINED", str(notes))
    run(1, *OPTIONS, f"run.dir={job.folder}", "run.name=unbroken")
    return sequence(starts(notes))


@pytest.mark.cluster
def test_a_host_joins_and_is_killed_and_the_run_goes_on_in_the_same_order(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job.start(0)
    job.until(lambda: job.steps_on(1) >= 6)
    second = job.start(1)
    job.until(lambda: job.steps_on(2) >= 6)
    job.kill(second)
    job.slow.unlink()
    assert job.code(first) == 0, job.said()

    rows = job.rows()
    assert [row["step"] for row in rows] == list(range(1, 14 * EPOCHS + 1))
    alone, together, alone_again = starts(job.notes)
    assert [start.size for start in (alone, together, alone_again)] == [1, 2, 1]
    # Nobody was lost when the second host joined: not a step was taken twice.
    assert max(alone.ranks) + 1 == min(together.ranks)
    trained = sequence([alone, together, alone_again])
    assert trained == unbroken(job, monkeypatch)
    for epoch in range(EPOCHS):
        samples = [s for step in trained[14 * epoch : 14 * (epoch + 1)] for s in step]
        assert len(samples) == len(set(samples)) == 14 * 96


@pytest.mark.cluster
def test_a_host_that_is_told_to_stop_leaves_and_the_first_one_ends_the_job(job: Job) -> None:
    first = job.start(0)
    second = job.start(1)
    job.until(lambda: job.steps_on(2) >= 3)
    second.send_signal(signal.SIGTERM)
    assert job.code(second) == 75, job.said(1)
    job.until(lambda: job.steps_on(1) >= 3)
    together, alone = starts(job.notes)
    assert max(together.ranks) + 1 == min(alone.ranks)
    assert sequence([together, alone])

    lacking = job.start(1, LACKS="the samples")
    assert job.code(lacking) == 2
    assert job.said(2).splitlines()[-1].endswith("this host lacks the samples")
    job.until(lambda: len(starts(job.notes)) == 3 and job.steps_on(1) >= 3)

    other = job.folder / "other code"
    shutil.copytree(ROOT, other, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__"))
    with (other / "ddp" / "stop.py").open("a") as file:
        file.write("# changed\n")
    stale = job.start(1, root=other)
    assert job.code(stale) == 2
    assert "rank 1: code" in job.said(3).splitlines()[-1]
    job.until(lambda: len(starts(job.notes)) == 4 and job.steps_on(1) >= 3)

    last = job.start(1)
    job.until(lambda: len(starts(job.notes)) == 5 and job.steps_on(2) >= 3)
    assert sequence(starts(job.notes))
    first.send_signal(signal.SIGTERM)
    assert [job.code(first), job.code(last)] == [75, 75], job.said() + job.said(4)
    assert (job.folder / "x" / "exit").read_text().startswith("75 stopped by SIGTERM")


@pytest.mark.cluster
def test_a_host_too_many_waits_for_its_turn_and_one_with_other_arguments_is_turned_away(
    job: Job,
) -> None:
    few = ("train.global_batch=98", "train.epochs=5")  # can be shared by 1, 2, 7, ... processes
    first, second, third = (job.start(n, *few, NNODES="1:3") for n in range(3))
    job.until(lambda: job.steps_on(2) >= 3)
    other = job.start(2, *few, "optim.lr=0.2", NNODES="1:3")
    assert job.code(other) == 2
    assert "error: this host was started with" in job.said(3)
    job.until(lambda: job.steps_on(2) >= 13)
    before = len(starts(job.notes))
    assert third.poll() is None
    second.send_signal(signal.SIGTERM)
    assert job.code(second) == 75, job.said(1)
    job.until(lambda: len(starts(job.notes)) == before + 1 and job.steps_on(2) >= 3)
    job.slow.unlink()
    assert [job.code(first), job.code(third)] == [0, 0], job.said() + job.said(2)
    assert {start.size for start in starts(job.notes)} <= {1, 2}
    assert len(sequence(starts(job.notes))) == 14 * 5


@pytest.mark.cluster
@pytest.mark.parametrize("hosts", [1, 2])
def test_a_run_that_always_fails_at_one_step_is_given_up_by_all_hosts(job: Job, hosts: int) -> None:
    job.slow.unlink()
    (job.notes / "fails").write_text("6")
    few = {"MAX_RESTARTS": "9"} | ({"NNODES": "1", "NPROC": "2"} if hosts == 1 else {})
    for number in range(hosts):
        job.start(number, **few)
    assert [job.code(host) for host in job.hosts] == [1] * hosts, job.said()
    said = job.said()
    assert "three restarts without progress: each began at step" in said.splitlines()[-1]
    assert "step 6 always fails" in said
    lines = (job.folder / "x" / "starts.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps.count(steps[-1]) == 3  # a fourth is not let begin
    if hosts == 2:
        assert "three restarts without progress" in job.said(1).splitlines()[-1]
