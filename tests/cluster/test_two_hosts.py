"""Two hosts, as two network namespaces joined by a cable of two ends: they train, and lose touch.

./launch.sh test -m cluster tests/cluster/test_two_hosts.py      (needs root and iproute2)
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.runs import QUICK
from tests.test_restart import processes_of

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("lockstep0", "lockstep1")
HANG_S = 10


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    for host in HOSTS:
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", host)
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "cable0", "netns", HOSTS[0], "type", "veth",
           "peer", "name", "cable1", "netns", HOSTS[1])  # fmt: skip
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    for number, host in enumerate(HOSTS):
        ip("-n", host, "link", "set", "lo", "up")
        ip("-n", host, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"cable{number}")
        ip("-n", host, "link", "set", f"cable{number}", "up")
    yield
    for host in HOSTS:
        ip("netns", "del", host)


def start(number: int, *arguments: str) -> subprocess.Popen[str]:
    """launch.sh on one of the two hosts, one process each."""
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[number], ROOT / "launch.sh", *arguments],
        env={
            **os.environ,
            "VIRTUAL_ENV": os.environ.get("VIRTUAL_ENV", sys.prefix),
            "NNODES": "2",
            "NODE_RANK": str(number),
            "MASTER_ADDR": "10.77.0.1",
            "MASTER_PORT": "29511",
            "NPROC": "1",
            "GLOO_SOCKET_IFNAME": f"cable{number}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def rows(folder: Path) -> list[int]:
    file = folder / "two" / "metrics.jsonl"
    text = file.read_text() if file.is_file() else ""
    return [json.loads(line)["step"] for line in text.splitlines() if line.endswith("}")]


@pytest.mark.cluster
@pytest.mark.usefixtures("hosts")
def test_two_hosts_train_and_both_end_when_the_cable_is_cut(tmp_path: Path) -> None:
    options = (*QUICK, f"run.dir={tmp_path}", "run.name=two", f"faults.hang_timeout_s={HANG_S}")
    jobs = [start(number, *options) for number in range(2)]
    said = [job.communicate(timeout=180)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert rows(tmp_path)[-1] == 28

    again = (*options[:-2], "run.name=two", options[-1], "train.epochs=500")
    again = (*again, f"run.dir={tmp_path / 'cut'}")
    jobs = [start(number, *again) for number in range(2)]
    try:
        limit = time.monotonic() + 120
        while not rows(tmp_path / "cut"):
            assert time.monotonic() < limit and jobs[0].poll() is None
            time.sleep(0.1)
        ip("-n", HOSTS[1], "link", "set", "cable1", "down")
        cut = time.monotonic()
        said = [job.communicate(timeout=120)[0] for job in jobs]
        assert time.monotonic() - cut < HANG_S + 30  # a cut-off host waits for the store once more
        assert [job.returncode for job in jobs] == [1, 1]
        assert "rank 1" in said[0].splitlines()[-1] and "hangs" in said[0].splitlines()[-1]
        assert "hangs" in said[1].splitlines()[-1]
    finally:
        for job in jobs:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.cluster
@pytest.mark.usefixtures("hosts")
def test_a_rank_killed_on_another_host_is_named(tmp_path: Path) -> None:
    options = (*QUICK, "run.name=two", "train.epochs=500", f"run.dir={tmp_path}")
    jobs = [start(number, *options) for number in range(2)]
    try:
        limit = time.monotonic() + 120
        while not rows(tmp_path):
            assert time.monotonic() < limit and jobs[0].poll() is None
            time.sleep(0.1)
        killed = min(processes_of(1, tmp_path))
        os.kill(killed, signal.SIGKILL)
        said = [job.communicate(timeout=60)[0] for job in jobs]
        assert [job.returncode for job in jobs] == [1, 1], said
        assert f"process {killed}) is gone" in said[0].splitlines()[-1], said[0]
    finally:
        for job in jobs:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
