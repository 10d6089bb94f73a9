"""What befalls one rank ends the job soon, blames that rank, says where it was, and leaves nothing.

./launch.sh test tests/test_faults.py              (every cell: tests/campaigns/faults.py)
"""

import time
from pathlib import Path
from typing import Any

import pytest

from checkpoint import writer
from checkpoint.open import read
from tests.cells import HANG_S, OPTIONS, verdict
from tests.faults import Fault, meet

CELLS = [
    Fault("raise", 1, "step", 6),
    Fault("exit", 0, "data", 6),
    Fault("kill", 0, "save", 1),
    Fault("segfault", 1, "evaluation", 1),
    Fault("memory", 1, "data", 6),
    Fault("worker", 1, "step", 6),
    Fault("stop", 1, "evaluation", 2),
    Fault("sleep", 0, "step", 6),
]


@pytest.mark.parametrize("fault", CELLS, ids=lambda f: f"{f.kind} on rank {f.rank} in {f.phase}")
def test_a_fault_ends_the_job_and_is_told(fault: Fault, tmp_path: Path) -> None:
    ended = meet(fault, 2, tmp_path, *OPTIONS)
    assert not verdict(fault, ended), ended.said


def test_a_process_alone_that_hangs_is_ended_too(tmp_path: Path) -> None:
    ended = meet(Fault("sleep", 0, "data", 6), 1, tmp_path, *OPTIONS)
    assert ended.codes == [1]
    assert ended.seconds < HANG_S + 5
    assert "hangs in data after step" in ended.said.splitlines()[-1]
    assert "time.sleep(1000)" in ended.said


@pytest.mark.parametrize("kind", ["raise", "kill"])
def test_a_save_under_way_is_finished_when_another_rank_fails(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = writer.write

    def slow_write(*args: Any, **kwargs: Any) -> writer.Written:
        time.sleep(3.0)
        return write(*args, **kwargs)

    monkeypatch.setattr(writer, "write", slow_write)
    # The fourth step, after two passes before the first: step 2 is being saved.
    ended = meet(Fault(kind, 1, "step", 6), 2, tmp_path, *OPTIONS, "save.every_steps=2")
    assert ended.first == 1 and ended.codes[0] == 1 and not ended.left, ended.said
    assert "a save is under way, and finished first" in ended.said
    [last] = tmp_path.glob("*/last.pt")
    assert read(last)["cursor"]["step"] == 2
