"""`python -m report.follow RUN`: keeps RUN/report.html up to date until its standard input ends.

Runs beside the training: it takes only processor time that nobody else wants, little of that, since
what shares a core slows it all the same, and imports nothing before there is something to show.
"""

import os
import select
import sys
import time
from pathlib import Path

_EVERY_S = 1.0
_PART = 200  # of the time: reports take one part in so many of a processor


def follow(run: Path) -> None:
    """Write the report after the first evaluation, when standard input ends, and between after each
    that is not too soon after the last report: half a second's work waits 100 s for the next."""
    _step_back()
    shown, next_at = 0.0, 0.0
    going_on = True
    while going_on:
        # Before the wait: a run mostly ends soon after an evaluation, and one report is enough.
        before = _changed(run / "evaluation.npz")
        going_on = not select.select([0], [], [], _EVERY_S)[0]
        evaluated = before if going_on else _changed(run / "evaluation.npz")
        is_due = evaluated != shown and time.monotonic() >= next_at
        if evaluated and (is_due or not going_on):
            begun = time.process_time()
            from report.make import write_report

            write_report(run)
            shown = evaluated
            next_at = time.monotonic() + _PART * (time.process_time() - begun)


def _changed(path: Path) -> float:
    """When the file was written; 0 when there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _step_back() -> None:
    """Run only where a processor would be idle, or as near to it as the system has."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    follow(Path(sys.argv[1]))
