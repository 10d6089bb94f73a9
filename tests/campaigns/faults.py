"""Every fault on the first and the last rank, in every phase: the table of docs/reliability.md.

python -m tests.campaigns.faults [KIND ...]          about 10 s a cell on two quiet processors
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.cells import OPTIONS, verdict
from tests.faults import KINDS, Fault, meet

PHASES = {"start": 1, "data": 6, "step": 6, "evaluation": 1, "save": 1, "end": 1}


def main(kinds: list[str]) -> int:
    """The number of cells in which something was wrong."""
    wrong = 0
    for kind in kinds:
        for phase, times in PHASES.items():
            if kind == "worker" and phase in ("start", "end"):
                continue  # there are no workers then
            for rank in (0, 1):
                fault = Fault(kind, rank, phase, times)
                with tempfile.TemporaryDirectory() as folder:
                    begun = time.monotonic()
                    ended = meet(fault, 2, Path(folder), *OPTIONS)
                found = verdict(fault, ended)
                wrong += bool(found)
                print(f"| {kind} | {phase} | {rank} | {ended.seconds:.1f} s | "
                      f"{'; '.join(found) or 'right'} |", flush=True)  # fmt: skip
                if found:
                    print(ended.said, file=sys.stderr, flush=True)
                assert time.monotonic() - begun < 120
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [kind for kind in KINDS if kind != "pause"]) > 0)
