"""Ctrl-C at a terminal: what launch.sh, torchrun and the ranks make of it, and what is said.

./launch.sh test tests/test_interrupt.py
"""

import os
import pty
import select
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.runs import QUICK

ROOT = Path(__file__).resolve().parents[1]
CTRL_C = b"\x03"


class Ended(NamedTuple):
    code: int
    said: str  # from Ctrl-C on


def interrupted(root: Path, is_time: Callable[[str], bool], *arguments: str) -> Ended:
    """How `launch.sh` of `root` ends when Ctrl-C is pressed, of what was said before, in time."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(VIRTUAL_ENV=sys.prefix, NPROC="2", OMP_NUM_THREADS="1")
        os.chdir(root)
        os.execv("./launch.sh", ["./launch.sh", *arguments])
    said, at, limit = "", -1, time.monotonic() + 120
    with suppress(OSError):  # as a terminal ends whose last process has gone
        while True:
            assert time.monotonic() < limit, said
            if at < 0 and is_time(said):
                at = len(said)
                os.write(terminal, CTRL_C)
            if select.select([terminal], [], [], 0.02)[0]:
                said += os.read(terminal, 65536).decode(errors="replace")
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), said[at:])


def told(ended: Ended) -> list[str]:
    """The lines that are no progress bar."""
    lines = ended.said.replace("^C", "").replace("\r", "\n").splitlines()
    return [
        line for line in lines if line.strip() and "step/s" not in line and "s/step" not in line
    ]


def test_a_ctrl_c_is_told_once_with_the_way_to_go_on(tmp_path: Path) -> None:
    options = (*QUICK, f"run.dir={tmp_path}", "run.name=x", "train.epochs=500")
    ended = interrupted(ROOT, lambda said: "held out" in said, *options)
    assert ended.code == 75
    other = [line for line in told(ended) if not line.startswith(("epoch ", "  held out: "))]
    (last,) = other
    assert last.startswith("stopped by SIGINT after step ")
    assert last.endswith(f"; --resume {tmp_path}/x/last.pt goes on")
    assert (tmp_path / "x" / "exit").read_text() == f"75 {last}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """launch.sh with a check of arguments and a train.py that say where they are, and go on."""
    folder = tmp_path / "root"
    folder.mkdir()
    for name in ("launch.sh", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("ddp", "utils"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    (folder / "configs" / "__main__.py").write_text(
        f"import time; open({str(tmp_path / 'checks')!r}, 'w'); time.sleep(1)"
    )
    (folder / "train.py").write_text(
        f"import time; open({str(tmp_path / 'starts')!r}, 'w'); time.sleep(60)"
    )
    return folder


@pytest.mark.parametrize("phase", ["checks", "starts"])
def test_a_ctrl_c_before_the_first_step_is_no_traceback(
    root: Path, tmp_path: Path, phase: str
) -> None:
    ended = interrupted(root, lambda _: (tmp_path / phase).exists())
    assert (ended.code, told(ended)) == (75, ["stopped before the first step"])
