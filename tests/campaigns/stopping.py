"""Every signal to every target in every phase, and to a real launch.sh and torchrun.

python -m tests.campaigns.stopping [forked] [again] [launched] [PHASE ...]      15 minutes in all

forked: SIGTERM, SIGINT, SIGUSR1 to each rank and to all with their workers and writer; again: more
than one signal; launched: what a person or a scheduler signals. Ends with a line for each signal.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR1

from tests.runs import QUICK
from tests.stops import MOST_S, OPTIONS, Case, assert_saved, go_on, stopped_run, unbroken

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("data", "step", "save", "evaluation")
PARTS = ("forked", "again", "launched")
# Long enough to meet it on its way.
LONG_STEPS = 40 * 14
LONG = ("train.epochs=40", "train.eval_every=20", "data.workers=2")


def forked() -> Iterator[Case]:
    for number, phase, workers in product((SIGTERM, SIGINT, SIGUSR1), PHASES, (0, 2)):
        yield Case(phase, (0,), (number,), workers)
        yield Case(phase, (1,), (number,), workers)
        yield Case(phase, (0, 1), (number,), workers, whole=True)


def again() -> Iterator[Case]:
    for signals, phase in product([(SIGTERM, SIGTERM), (SIGINT, SIGTERM, SIGUSR1)], PHASES):
        yield Case(phase, (0, 1), signals, 2, whole=True)


def launched() -> Iterator[tuple[str, int]]:
    yield from (("launch.sh", number) for number in (SIGTERM, SIGINT, SIGUSR1, signal.SIGHUP))
    yield from product(("torchrun", "rank 0", "rank 1", "its whole session"), (SIGTERM, SIGINT))


def stopped_launch(target: str, number: int, folder: Path, whole_run: Path) -> float:
    """As stops.stopped_run, of a job of launch.sh, of which `target` gets signal `number`."""
    options = (*QUICK, *OPTIONS, *LONG)
    job = subprocess.Popen(
        [ROOT / "launch.sh", *options, f"run.dir={folder}"],
        env={**os.environ, "NPROC": "2", "OMP_NUM_THREADS": "1"}
        | ({} if "VIRTUAL_ENV" in os.environ else {"VIRTUAL_ENV": sys.prefix}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rows, limit = folder / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (rows.is_file() and rows.read_bytes().count(b"\n") >= 6):
        assert job.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    for process in targets(target, job.pid):
        os.kill(process, number)
    begun = time.monotonic()
    _, said = job.communicate(timeout=120)
    seconds = time.monotonic() - begun
    assert job.returncode == 75, said
    assert seconds < MOST_S
    assert "Traceback" not in said, said
    left = descendants(job.pid)
    assert not left, f"left {left}"
    assert_saved(folder / "run", LONG_STEPS)
    go_on(folder, whole_run, *options)
    return seconds


def targets(target: str, launcher: int) -> list[int]:
    """The processes that `target` means, of a job whose launch.sh is `launcher`."""
    if target == "launch.sh":
        return [launcher]
    session = descendants(launcher)
    if target == "its whole session":
        return session
    children = [p for p in session if _stat(p)[1] == launcher]
    [torchrun] = [p for p in children if b"--nproc-per-node=2" in command(p)]
    ranks = sorted(p for p in session if _stat(p)[1] == torchrun)
    return {"torchrun": [torchrun], "rank 0": ranks[:1], "rank 1": ranks[1:2]}[target]


def descendants(launcher: int) -> list[int]:
    """Living processes of the sessions that launch.sh and, below it, the ranks lead."""
    found = [launcher]
    everyone = {int(p.name): _stat(int(p.name)) for p in Path("/proc").iterdir()
                if p.name.isdigit()}  # fmt: skip
    for process, (_, parent, _) in sorted(everyone.items()):
        if parent in found:
            found.append(process)
    ours = [p for p, (state, _, session) in everyone.items()
            if state not in "ZX" and (p in found or session == launcher)]  # fmt: skip
    return [p for p in ours if b"report.follow" not in command(p)]  # it outlives the run on purpose


def command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _stat(process: int) -> tuple[str, int, int]:
    """(state, parent, session)"""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0, 0
    return fields[0], int(fields[1]), int(fields[3])


def cell(name: str, cell_run: Callable[[Path], float]) -> float | None:
    """Print the cell; its seconds, None when something was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            seconds = cell_run(Path(folder))
        except AssertionError:
            traceback.print_exc()
            print(f"| {name} | | wrong |", flush=True)
            return None
    print(f"| {name} | {seconds:.1f} s | right |", flush=True)
    return seconds


def main(chosen: list[str]) -> int:
    """The number of cells in which something was wrong."""
    assert {*chosen} <= {*PARTS, *PHASES}, f"parts: {', '.join(PARTS)}; {', '.join(PHASES)}"
    parts = [part for part in chosen if part in PARTS] or PARTS
    phases = [phase for phase in chosen if phase in PHASES] or PHASES
    told: dict[str, list[float | None]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        whole = unbroken(Path(folder))
        cases = [*(forked() if "forked" in parts else ()), *(again() if "again" in parts else ())]
        for case in (case for case in cases if case.phase in phases):
            names = " ".join(signal.Signals(number).name for number in case.signals)
            told[names].append(cell(str(case), lambda f, c=case: stopped_run(c, f, whole)))
        if "launched" in parts:
            long = unbroken(Path(folder) / "long", *LONG)
            for target, number in launched():
                name = f"{signal.Signals(number).name} to {target}"
                took = cell(name, lambda f, t=target, n=number: stopped_launch(t, n, f, long))
                told["under launch.sh"].append(took)
    print("\n| signal | cells | seconds | wrong |\n| --- | --- | --- | --- |")
    for name, seconds in told.items():
        right = [one for one in seconds if one is not None]
        spread = f"{min(right):.1f}-{max(right):.1f}" if right else ""
        print(f"| {name} | {len(seconds)} | {spread} | {seconds.count(None)} |")
    return sum(seconds.count(None) for seconds in told.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
