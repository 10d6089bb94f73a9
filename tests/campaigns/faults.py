"""Every fault on the first and the last rank, in every phase: the table of docs/reliability.md.

python -m tests.campaigns.faults [KIND ...] [PHASE ...]      5 s a cell on two quiet processors

Ends with a line for each kind: cells, seconds from the fault to the end of the last process, wrong.
"""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.cells import OPTIONS, STARTS, verdict
from tests.faults import KINDS, Fault, meet

# A place of each phase, and how often it is passed before the fault.
PHASES = dict.fromkeys((*STARTS, "evaluation", "save", "end"), 1) | {"data": 6, "step": 6}
WORKERS_LIVE = ("data", "step", "evaluation", "save")


def cell(fault: Fault) -> tuple[float, list[str]]:
    """Seconds from the fault to the end of the last process, and what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        ended = meet(fault, 2, Path(folder), *OPTIONS)
    wrong = verdict(fault, ended)
    print(f"| {fault.kind} | {fault.phase} | {fault.rank} | {ended.seconds:.1f} s | "
          f"{'; '.join(wrong) or 'right'} |", flush=True)  # fmt: skip
    if wrong:
        print(ended.said, file=sys.stderr, flush=True)
    return ended.seconds, wrong


def main(chosen: list[str]) -> int:
    """The number of cells in which something was wrong."""
    kinds = [kind for kind in chosen if kind in KINDS] or [
        k for k in KINDS if k not in ("pause", "none")
    ]
    phases = [phase for phase in chosen if phase in PHASES] or list(PHASES)
    assert {*chosen} <= {*KINDS, *PHASES}, f"kinds: {', '.join(KINDS)}; {', '.join(PHASES)}"
    seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    wrong: dict[tuple[str, bool], int] = defaultdict(int)
    for kind in kinds:
        for phase in phases:
            if kind == "worker" and phase not in WORKERS_LIVE:
                continue
            for rank in (0, 1):
                took, found = cell(Fault(kind, rank, phase, PHASES[phase]))
                seconds[kind, phase in STARTS].append(took)
                wrong[kind, phase in STARTS] += bool(found)
    print("\n| fault | cells | seconds | wrong |\n| --- | --- | --- | --- |")
    for (kind, at_start), took_s in seconds.items():
        where = " before the first step" if at_start else ""
        print(f"| {kind}{where} | {len(took_s)} | {min(took_s):.1f}-{max(took_s):.1f} | "
              f"{wrong[kind, at_start]} |")  # fmt: skip
    return sum(wrong.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
