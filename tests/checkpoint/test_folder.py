"""Which folder a run takes, who may write in it, and what going on from a step undoes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from checkpoint import folder, store
from tests.checkpoint.content import content, names, put
from utils.errors import BadInput

ROOT = Path(__file__).parents[2]


Claim = Callable[..., folder.RunFolder]


@pytest.fixture
def claim() -> Iterator[Claim]:
    """`folder.claim`, released at the end of the test."""
    claimed: list[folder.RunFolder] = []

    def claim(parent: Path, resume: folder.Resume, name: str = "x") -> folder.RunFolder:
        claimed.append(folder.claim(parent, name, resume))
        return claimed[-1]

    yield claim
    for run in claimed:
        with suppress(OSError):  # it was released in the test
            run.release()


def start(claim: Claim, parent: Path) -> folder.RunFolder:
    run = claim(parent, "none")
    run.begin("seed: 0\n")
    return run


def test_an_absent_folder_starts_and_is_described(tmp_path: Path, claim: Claim) -> None:
    run = start(claim, tmp_path / "deep" / "runs")
    assert run.path == tmp_path / "deep" / "runs" / "x" and not run.finished
    assert (run.path / "config.yaml").read_text() == "seed: 0\n" and run.logs.is_dir()


@pytest.mark.parametrize("resume", ["auto", "file"])
def test_resuming_takes_an_absent_or_an_unfinished_folder(
    tmp_path: Path, claim: Claim, resume: folder.Resume
) -> None:
    claim(tmp_path, resume).release()
    start(claim, tmp_path).release()
    run = claim(tmp_path, resume)
    assert run.path == tmp_path / "x" and not run.finished


def test_an_unfinished_folder_is_not_started_again(tmp_path: Path, claim: Claim) -> None:
    run = start(claim, tmp_path)
    with closing(run.metrics()) as metrics:
        metrics.append({"step": 1})
    run.finish(75, "stopped by a signal\nand saved")
    assert (run.path / "exit").read_text() == "75 stopped by a signal and saved\n"
    run.release()
    with pytest.raises(BadInput, match="--resume auto"):
        claim(tmp_path, "none")
    claim(tmp_path, "auto").begin("seed: 1\n")
    assert not (tmp_path / "x" / "exit").exists()


def test_a_finished_folder_gives_the_next_free_name(tmp_path: Path, claim: Claim) -> None:
    for expected in ("x", "x-2", "x-3"):
        run = start(claim, tmp_path)
        assert run.path.name == expected
        run.finish(0, "finished")
        run.release()
    again = claim(tmp_path, "auto")
    assert again.finished and again.path.name == "x"


def test_a_second_run_is_refused_at_once_and_told_by_whom(tmp_path: Path, claim: Claim) -> None:
    run = start(claim, tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom checkpoint import folder\n"
        "from utils.errors import BadInput\n"
        "try: folder.claim(Path(sys.argv[2]), 'x', 'auto')\n"
        "except BadInput as error: print(error)\n"
    )
    begin = time.monotonic()
    command = [sys.executable, "-c", program, str(ROOT), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"in use by process {os.getpid()} on" in said
    assert time.monotonic() - begin < 20
    run.release()
    claim(tmp_path, "auto")


def test_a_new_run_waits_for_the_writer_of_a_killed_one(tmp_path: Path, claim: Claim) -> None:
    ready, go = os.pipe()
    owner = os.fork()
    if owner == 0:
        start(claim, tmp_path)
        if os.fork() == 0:  # a writer that outlives its owner for a moment
            os.write(go, b".")
            time.sleep(0.4)
            os._exit(0)
        signal.pause()
    os.read(ready, 1)
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    begin = time.monotonic()
    claim(tmp_path, "auto")
    assert 0.1 < time.monotonic() - begin < 5


def test_a_lock_file_that_its_holder_removed_meanwhile_is_not_taken(
    tmp_path: Path, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = folder.Lock._try

    def withdrawn_first(self: folder.Lock) -> bool:
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "x")
        return locked(self)

    monkeypatch.setattr(folder.Lock, "_try", withdrawn_first)
    claim(tmp_path, "none")
    with pytest.raises(BadInput, match="in use"):
        claim(tmp_path, "none")


def test_a_save_that_stops_the_loop_is_waited_for(
    tmp_path: Path, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, write = threading.Event(), store.write

    def slow_write(*args: Any, **kwargs: Any) -> Any:
        began.set()
        time.sleep(1.0)
        return write(*args, **kwargs)

    monkeypatch.setattr(store, "free_memory", lambda: 0)
    monkeypatch.setattr(store, "write", slow_write)
    run = start(claim, tmp_path)
    loop = threading.Thread(target=run.store(2).save, args=[content(1), 1])
    loop.start()
    assert began.wait(30) and run.is_saving
    run.finish_save(0.1)
    assert not names(run.path)
    run.finish_save(30)
    assert "last.pt" in names(run.path)
    loop.join()


def test_a_writer_that_is_stopped_is_not_waited_for_without_end(
    tmp_path: Path, claim: Claim
) -> None:
    run = start(claim, tmp_path)
    assert run.writer is not None
    os.kill(run.writer.pid, signal.SIGSTOP)
    run.store(2).save(content(1), 1)
    run.finish_save(0.2)
    assert run.is_saving and not names(run.path)
    os.kill(run.writer.pid, signal.SIGCONT)
    run.finish_save(30)
    assert "last.pt" in names(run.path)


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path, claim: Claim) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"Not a directory|File exists"):
        claim(tmp_path / "file", "none")
    with pytest.raises(BadInput, match=r"Not a directory|File exists"):
        claim(tmp_path, "auto", "file")


def test_going_on_cuts_the_rows_and_sets_newer_checkpoints_aside(
    tmp_path: Path, claim: Claim
) -> None:
    run = start(claim, tmp_path)
    rows = run.metrics()
    for step in (1, 2, 3):
        rows.append({"step": step, "train": {"loss": 1.0 / step}})
        put(run.path, step, best=step != 2, keep=5)
    rows.close()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tr')
    assert sorted(run.rewind(2)) == ["best.pt", "last.pt", "step-00000003.pt"]
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    found = store.newest_good(run.path)
    assert found is not None and found.path.name == "step-00000002.pt"
    assert run.rewind(2) == []
    put(run.path, 3, seed=4)
    run.rewind(2)
    assert (run.path / "step-00000003.pt.abandoned-2").exists()


def test_going_on_from_the_newest_leaves_everything(tmp_path: Path, claim: Claim) -> None:
    run = start(claim, tmp_path)
    put(run.path, 3, best=True)
    assert run.rewind(3) == [] and (run.path / "best.pt").exists()
