"""Runs in which nothing is wrong: the watch must not say that something is.

python -m tests.campaigns.clean [plain] [one-core] [crowded]          10 minutes on two processors

plain: 50 runs of 2 ranks; one-core: 8 ranks and their workers on one processor; crowded: 2 ranks
beside 8 processes that compute. A rank may be silent for 3 s, before its first step for 12 s.
"""

import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cells import OPTIONS
from tests.faults import Fault, meet

CORES = os.sched_getaffinity(0)
# ranks, runs
SETS = {"plain": (2, 50), "one-core": (8, 5), "crowded": (2, 10)}
ALARMS = re.compile(r"hangs in|died in|failed in|ends: |was here|Stack \(|Traceback|stopped by")


def clean(name: str, world_size: int) -> tuple[float, str]:
    """Seconds of one run, and what was wrong with it; empty when nothing was."""
    with tempfile.TemporaryDirectory() as folder, surroundings(name):
        ended = meet(Fault("none", 0, "start", 1), world_size, Path(folder), *OPTIONS, limit_s=300)
    wrong = [] if ended.codes == [0] * world_size else [f"codes {ended.codes}"]
    wrong += [f"left {ended.left}"] if ended.left else []
    wrong += [f"said {alarm[0]!r}"] if (alarm := ALARMS.search(ended.said)) else []
    if wrong:
        print(ended.said, file=sys.stderr, flush=True)
    return ended.seconds, "; ".join(wrong)


@contextmanager
def surroundings(name: str) -> Iterator[None]:
    """The processors of a run, and who else computes on them."""
    beside = []
    if name == "one-core":
        os.sched_setaffinity(0, {min(CORES)})
    elif name == "crowded":
        beside = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(8)]
    try:
        for process in beside:
            process.start()
        yield
    finally:
        for process in beside:
            process.kill()
            process.join()
        os.sched_setaffinity(0, CORES)


def _compute() -> None:
    while True:
        sum(range(100_000))


def main(chosen: list[str]) -> int:
    """The number of runs in which something was wrong."""
    assert {*chosen} <= {*SETS}, ", ".join(SETS)
    wrong = 0
    print("| runs | ranks | seconds after the start | false alarms |\n| --- | --- | --- | --- |")
    for name, (world_size, runs) in SETS.items():
        if not chosen or name in chosen:
            results = [clean(name, world_size) for _ in range(runs)]
            found = [what for _, what in results if what]
            took = [seconds for seconds, _ in results]
            print(f"| {name}: {runs} | {world_size} | {min(took):.1f}-{max(took):.1f} | "
                  f"{len(found)} {'; '.join(found)} |", flush=True)  # fmt: skip
            wrong += len(found)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
