"""How a process ends: one message, one exit code, nothing left waiting."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from checkpoint.folder import RunFolder
from ddp.process import promised_world_size
from ddp.rank0 import Rank0Failed, is_rank0
from ddp.stop import SaveStopped, Stopped
from ddp.wrap import Disagreement
from engine.step import NonFinite
from utils.errors import BadInput

log = logging.getLogger(__name__)

# Raised on all ranks together: rank 0 tells.
TOGETHER = (Stopped, SaveStopped, NonFinite, Disagreement)


def end(run: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """The exit code of `run(argv)`: 0 finished, 2 bad input, 75 stopped, 1 anything else.

    A failure is told once: bad input and the like by their message, our own mistakes by their
    traceback. A process of several then ends at once, without waiting for the others' collectives.
    """
    try:
        run(argv)
    except SystemExit as request:  # --help
        return int(request.code or 0)
    except Exception as error:
        code = _code(error)
        _tell(error)
        _tell_launcher(code, _reason(error))
        if promised_world_size() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code
    _tell_launcher(0, "finished")
    return 0


@contextmanager
def exit_recorded(folder: RunFolder | None) -> Iterator[None]:
    """Leave exit code and reason in the run folder, when rank 0 holds it, however the run ends."""
    try:
        yield
    except Exception as error:
        if folder is not None:
            folder.finish(_code(error), _reason(error))
        raise
    if folder is not None:
        folder.finish(0, "finished")


def _code(error: Exception) -> int:
    return int(getattr(error, "exit_code", 1))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _tell(error: Exception) -> None:
    if isinstance(error, Rank0Failed):
        log.info("rank 0 failed: %s", error)
    elif isinstance(error, TOGETHER):
        log.log(logging.ERROR if is_rank0() else logging.INFO, "%s", error)
    elif isinstance(error, BadInput | OSError):
        log.error("%s", error)
    else:
        log.error("%s", "".join(traceback.format_exception(error)).rstrip())


def _tell_launcher(code: int, reason: str) -> None:
    """Leave rank 0's exit code and reason where launch.sh looks: torchrun only knows 0 and 1."""
    file = os.environ.get("LOCKSTEP_EXIT")
    if file and is_rank0():
        Path(file).write_text(f"{code}\n{' '.join(reason.split())}\n")
