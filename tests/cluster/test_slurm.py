"""launch.slurm on a real Slurm: jobs that train, are warned, preempted, cancelled, or fail.

./launch.sh test -m cluster tests/cluster/test_slurm.py    (needs root, slurm-wlm and munge)
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm, lacking, running
from tests.runs import QUICK, assert_same_bits, outcome, run
from tests.test_restart import processes_of

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]

# In the place of launch.sh: what reaches it, and the time to end with 75 when it is told to.
STAND_IN = r"""#!/bin/bash
trap 'sleep 0.3; exit 75' TERM USR1
echo "node $NODE_RANK of $NNODES at $MASTER_ADDR:$MASTER_PORT, NPROC=$NPROC:" "${@@Q}"
touch "notes/$SLURM_JOB_ID.$NODE_RANK"
for ((i = 0; i < ${TENTHS-0}; i++)); do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := lacking():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A repository, of launch.slurm and a launch.sh that trains nothing."""
    repository = tmp_path / "a repository"
    (repository / "notes").mkdir(parents=True)
    shutil.copy(ROOT / "launch.slurm", repository)
    (repository / "launch.sh").write_text(STAND_IN)
    (repository / "launch.sh").chmod(0o755)
    return repository


def until_started(repository: Path, nodes: int = 2) -> None:
    limit = time.monotonic() + 30
    while len(list((repository / "notes").iterdir())) < nodes:
        assert time.monotonic() < limit
        time.sleep(0.05)


def until_step(folder: Path, step: int) -> None:
    rows, limit = folder / "metrics.jsonl", time.monotonic() + 120
    while not (rows.is_file() and rows.read_bytes().count(b"\n") >= step):
        assert time.monotonic() < limit, "the run never reached the step"
        time.sleep(0.02)


def test_a_job_trains_on_two_nodes_and_one_that_finds_its_run_finished_is_completed(
    slurm: Slurm, tmp_path: Path
) -> None:
    job = slurm.submit(ROOT, "launch.slurm", *QUICK, f"run.dir={tmp_path}", "run.name=job")
    assert slurm.until(job, "COMPLETED") == "0:0"
    assert "2 processes x 1 micro-batch x 48" in slurm.said(job)
    run(2, *QUICK, f"run.dir={tmp_path}", "run.name=run")
    assert_same_bits(outcome(tmp_path / "run"), outcome(tmp_path / "job"))

    slurm("scontrol", "requeue", job)
    slurm.until(job, "PENDING", restarts=1)
    slurm.start_now(job, restarts=1)
    assert slurm.until(job, "COMPLETED", restarts=1) == "0:0"
    assert "already finished" in slurm.said(job).splitlines()[-1]


def test_a_job_that_is_warned_then_preempted_goes_on_to_the_same_bits(
    slurm: Slurm, tmp_path: Path
) -> None:
    # Two stops, of at most some 150 steps each (ddp/stop.py), leave a rest of the 420.
    options = (*QUICK, "train.epochs=30", "train.eval_every=10", f"run.dir={tmp_path}")
    job = slurm.submit(ROOT, "launch.slurm", *options, "run.name=job")
    until_step(tmp_path / "job", 1)
    slurm("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@300 does
    slurm.until(job, "PENDING", restarts=1)
    assert "stopped by SIG" in slurm.said(job)
    assert "before the first step" not in slurm.said(job)  # torchrun lives until its ranks end
    stopped = outcome(tmp_path / "job")["cursor"]["step"]

    slurm.start_now(job, restarts=1)
    until_step(tmp_path / "job", stopped + 1)
    urgent = slurm.submit(tmp_path, "--partition=urgent", "--nodes=2", "--wrap=true")
    assert slurm.until(urgent, "COMPLETED") == "0:0"
    slurm.until(job, "PENDING", restarts=2)
    assert outcome(tmp_path / "job")["cursor"]["step"] > stopped

    run(2, *options, "run.name=run")
    slurm.start_now(job, restarts=2)
    assert slurm.until(job, "COMPLETED", restarts=2) == "0:0"
    assert_same_bits(outcome(tmp_path / "run"), outcome(tmp_path / "job"))


def test_bad_input_and_a_failed_rank_end_the_job(slurm: Slurm, tmp_path: Path) -> None:
    misspelt = slurm.submit(ROOT, "launch.slurm", "train.epoch=1")
    missing = slurm.submit(ROOT, "launch.slurm", "model.weights=missing.pt", f"run.dir={tmp_path}")
    failing = slurm.submit(
        ROOT, "launch.slurm", *QUICK, "train.epochs=500", f"run.dir={tmp_path}", "run.name=job"
    )
    until_step(tmp_path / "job", 1)
    assert slurm.until(misspelt, "FAILED") == "2:0"
    assert "did you mean" in slurm.said(misspelt)
    assert slurm.until(missing, "FAILED") == "2:0"
    assert "missing.pt" in slurm.said(missing)

    os.kill(min(processes_of(1, tmp_path)), signal.SIGKILL)
    assert slurm.until(failing, "FAILED") == "1:0"
    assert "SIGKILL" in slurm.said(failing)


@pytest.mark.parametrize("options", [(), ("--export=NPROC=1,SLURM_CONF",), ("--chdir={}",)])
def test_launch_sh_gets_its_place_and_every_argument_as_it_is(
    slurm: Slurm, stand_in: Path, options: tuple[str, ...]
) -> None:
    where = stand_in.parent if "--chdir={}" in options else stand_in
    words = (*(option.format(stand_in) for option in options), str(stand_in / "launch.slurm"))
    job = slurm.submit(where, *words, "a b", "c'd", "$HOME", "*")
    assert slurm.until(job, "COMPLETED") == "0:0"
    port = 20000 + int(job) % 10000
    arguments = r"'--resume' 'auto' 'a b' 'c'\''d' '$HOME' '*'"
    assert sorted(slurm.said(job).splitlines()) == [
        f"node {rank} of 2 at 127.0.0.1:{port}, NPROC=1: {arguments}" for rank in range(2)
    ]


def test_a_cancelled_job_does_not_come_back(slurm: Slurm, stand_in: Path) -> None:
    job = slurm.submit(stand_in, "--export=ALL,TENTHS=300", "launch.slurm")
    until_started(stand_in)
    slurm("scancel", job)
    assert slurm.until(job, "CANCELLED") == "75:0"


def test_a_job_of_an_array_requeues_itself_alone(slurm: Slurm, stand_in: Path) -> None:
    options = ("--array=0-1", "--nodes=1", "--export=ALL,TENTHS=30")
    array = slurm.submit(stand_in, *options, "launch.slurm")
    until_started(stand_in, nodes=2)
    # The last of an array carries the array's own number.
    slurm("scancel", "--batch", "--signal=USR1", f"{array}_1")
    slurm.until(f"{array}_1", "PENDING", restarts=1)
    assert slurm.until(f"{array}_0", "COMPLETED") == "0:0"
    slurm("scancel", array)
