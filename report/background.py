"""Reports made beside a run, by a process of their own that steps back behind everything else."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent
_WAIT_S = 3.0  # for the last report, which follows later where every processor is busy


@contextmanager
def reported(run: Path | None) -> Iterator[None]:
    """Keep `report.html` in the folder `run` up to date meanwhile; None: do nothing.

    Nothing here can fail or slow the run: what goes wrong is told in `logs/report.log`.
    """
    if run is None:
        yield
        return
    try:
        process = _start(run)
    except OSError as error:
        log.warning("no report is written beside the run: %s", error)
        yield
        return
    assert process.stdin is not None
    try:
        yield
    except BaseException:
        process.stdin.close()  # it writes the last report after this process has gone
        raise
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_WAIT_S)


def _start(run: Path) -> "subprocess.Popen[bytes]":
    searched = os.environ.get("PYTHONPATH")
    with (run / "logs" / "report.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "report.follow", str(run.resolve())],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{_ROOT}{os.pathsep}{searched}" if searched else str(_ROOT),
            },
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # what stops the run must not stop its last report
        )
