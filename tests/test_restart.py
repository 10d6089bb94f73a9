"""A job that its launcher starts again goes on from its newest good checkpoint, but not for ever.

./launch.sh test tests/test_restart.py
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import restart
from tests.runs import QUICK, assert_same_bits, outcome, run

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs/x")
OPTIONS = (*QUICK, "save.every_steps=4", "train.epochs=4")


def processes_of(rank: int, folder: Path) -> list[int]:
    """The processes that train as `rank` in `folder`."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes().split(b"\0")
                environment = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = f"run.dir={folder}".encode() in line and f"RANK={rank}".encode() in environment
            if ours and any(part.endswith(b"train.py") for part in line):
                found.append(int(process.name))
    return found


def test_a_killed_rank_is_restarted_to_the_same_bits(tmp_path: Path) -> None:
    job = subprocess.Popen(
        [ROOT / "launch.sh", *OPTIONS, f"run.dir={tmp_path}", "run.name=broken"],
        env={**os.environ, "NPROC": "2", "MAX_RESTARTS": "2", "OMP_NUM_THREADS": "1"}
        | ({} if "VIRTUAL_ENV" in os.environ else {"VIRTUAL_ENV": sys.prefix}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    rows, limit = tmp_path / "broken" / "metrics.jsonl", time.monotonic() + 120
    while not (rows.is_file() and rows.read_bytes().count(b"\n") >= 6):
        assert job.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    # Workers and the writer have the same command line: the oldest is the rank itself.
    os.kill(min(processes_of(1, tmp_path)), signal.SIGKILL)
    run(2, *OPTIONS, f"run.dir={tmp_path}", "run.name=unbroken")
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert "going on from" in said
    assert "rank 1" in said and "died" in said
    assert_same_bits(outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken"))


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Notes a start at a step, after so many failures."""
    store: dict[str, str] = {}
    monkeypatch.setattr(restart, "recall", store.get)
    monkeypatch.setattr(restart, "remember", store.__setitem__)
    assert restart.earlier_folder() is None

    def noted(step: int, failures: int) -> None:
        monkeypatch.setattr(restart, "failures", lambda: failures)
        restart.note_start(FOLDER, step)
        assert restart.earlier_folder() == FOLDER.absolute()

    return noted


def test_three_restarts_without_progress_end_the_run(begin: Callable[[int, int], None]) -> None:
    for failures, step in enumerate((0, 4, 4, 4)):
        begin(step, failures)
    with pytest.raises(
        restart.NoProgress, match=r"three restarts without progress: each .* step 4"
    ):
        begin(4, 4)


def test_hosts_that_come_and_go_are_no_failures(begin: Callable[[int, int], None]) -> None:
    for failures in (0, 0, 0, 0, 0, 1, 1, 1, 2, 2):
        begin(4, failures)
    begin(8, 3)  # progress
    for failures in (4, 4, 5, 5, 5):
        begin(8, failures)
    with pytest.raises(restart.NoProgress, match=r"three restarts without progress"):
        begin(8, 6)


def test_a_run_that_is_never_let_take_a_step_ends(begin: Callable[[int, int], None]) -> None:
    for _ in range(20):
        begin(4, 1)
    with pytest.raises(restart.NoProgress, match=r"20 restarts without progress: .* step 4"):
        begin(4, 1)
