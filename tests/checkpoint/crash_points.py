"""Every file-changing system call of one save, killed and failed in turn; prints the tally as JSON.

Run with `faults.c` preloaded: python crash_points.py SHIM FOLDER MODE..., where MODE is `kill` or
the name of an errno. torch is imported once, and each trial is a fork. A trial's folder holds the
checkpoints 2 and 3, of which 2 is the best; the save under test is 4, becomes the best, and
deletes 2.
"""

import ctypes
import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from checkpoint import publish, store
from checkpoint.writer import write
from tests.checkpoint.content import content, put, same, temporaries


def main(shim: ctypes.CDLL, folder: Path, mode: str) -> dict[str, Any]:
    """The tally of one mode, in the new `folder`."""
    start = folder / "start"
    start.mkdir(parents=True)
    for step in (1, 2, 3):
        put(start, step, best=step == 2)
    (start / "metrics.jsonl").write_text('{"step": 1}\n')
    saves = {step: content(step) for step in (4, 5)}
    old = {step: store.load(start / f"step-0000000{step}.pt") for step in (2, 3)}
    code = 0 if mode == "kill" else getattr(errno, mode)
    points = counted(shim, fresh(start, folder / "count"), saves[4])
    tally: dict[str, Any] = {"points": points, "old": 0, "new": 0, "told": 0, "bad": []}
    for point in range(1, points + 1):
        trial = fresh(start, folder / f"{mode}-{point}")
        said = attempt(shim, trial, saves[4], point, code)
        problem = judge(trial, said, old, saves[5], mode)
        if problem:
            tally["bad"].append(f"{mode} at call {point}: {problem} [{said}]")
        else:
            reached = (trial / "step-00000004.pt").exists()
            tally["new" if reached else "old"] += 1
            tally["told"] += said.startswith("failed")
            shutil.rmtree(trial)
    return tally


def fresh(start: Path, folder: Path) -> Path:
    """A copy of `start` with its hard links and times."""
    os.spawnlp(os.P_WAIT, "cp", "cp", "-a", str(start), str(folder))
    return folder


def counted(shim: ctypes.CDLL, folder: Path, save: dict[str, Any]) -> int:
    shim.arm(0, 0)
    write(folder, save, best=True, keep=2)
    return int(shim.disarm())


def attempt(shim: ctypes.CDLL, folder: Path, save: dict[str, Any], point: int, code: int) -> str:
    """What the save in a fork said; `killed`, or `crashed` when it did not end as it should."""
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        said = "crashed"
        try:
            shim.arm(point, code)
            written = write(folder, save, best=True, keep=2)
            said = "saved " + " ".join(written.warnings)
        except store.SaveFailed as error:
            said = f"failed {error.errno} {error}"
        except BaseException as error:
            said = f"crashed {error!r}"
        finally:
            shim.disarm()
            os.write(told, said.encode())
            os._exit(0)
    os.close(told)
    with os.fdopen(answer) as lines:
        said = lines.read()
    _, status = os.waitpid(child, 0)
    return "killed" if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else said


def judge(
    folder: Path, said: str, old: dict[int, Any], following: dict[str, Any], mode: str
) -> str:
    """What is wrong with the folder after a trial; an empty string when nothing is."""
    found = store.newest_good(folder)
    if found is None or found.refused:
        return "no newest checkpoint, or a damaged one"
    step = found.content["cursor"]["step"]
    if step not in (3, 4):
        return f"the newest is of step {step}"
    for name, steps in (("last.pt", (3, 4)), ("best.pt", (2, 4))):
        if store.load(folder / name)["cursor"]["step"] not in steps:
            return f"{name} is of another step"
    good = [number for number, path in publish.step_files(folder) if store.load(path)]
    if len(good) < 2 or 3 not in good or (2 not in good and 4 not in good):
        return f"only {good} are left"
    if not same(store.load(folder / "step-00000003.pt"), old[3]):
        return "the previous checkpoint has changed"
    if mode == "kill":
        if said != "killed":
            return "was not killed"
        publish.clear_temporaries(folder)
    elif said.startswith("crashed") or (said.startswith("saved") and step != 4):
        return "did not end as it should"
    elif said.startswith("failed"):
        code = getattr(errno, mode)
        if f"failed {code} " not in said or os.strerror(code) not in said:
            return "does not say why"
        if str(folder) not in said:
            return "does not say where"
    if temporaries(folder):
        return f"left {temporaries(folder)}"
    write(folder, following, best=False, keep=2)
    again = store.newest_good(folder)
    if again is None or again.content["cursor"]["step"] != 5 or again.refused:
        return "the next save does not work"
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    library = ctypes.CDLL(sys.argv[1])
    modes = sys.argv[3:]
    print(json.dumps({mode: main(library, Path(sys.argv[2]) / mode, mode) for mode in modes}))
