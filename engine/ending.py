"""How a process ends: one message, one exit code, nothing left waiting."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from checkpoint.folder import RunFolder
from ddp import watch
from ddp.end import LAST_WORK_S, say, tell_launcher
from ddp.process import is_peer_loss, promised_world_size
from ddp.rank0 import Rank0Failed, is_first_of_host, stands_for_rank0
from ddp.rehearsal import is_rehearsal
from ddp.stop import SaveStopped, Stopped
from ddp.wrap import Disagreement
from engine.restart import NoProgress
from engine.step import NonFinite
from utils.errors import BadInput

log = logging.getLogger(__name__)

# Raised on all ranks together: rank 0 tells.
TOGETHER = (Stopped, SaveStopped, NonFinite, Disagreement, Rank0Failed)

# Of these, and of an OSError, the message says all; `_tell` shows where any other came from.
TOLD_BY_MESSAGE = (*TOGETHER, BadInput, NoProgress)

_claimed: list[RunFolder] = []  # the folder of this process's run, from when its end belongs there


def end(run: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """The exit code of `run(argv)`: 0 finished, 2 bad input, 75 stopped, 1 anything else.

    A failure is told once: bad input and the like by their message, our own mistakes by their
    traceback. A process of several then ends at once, without waiting for the others' collectives,
    and the others end with it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is lost before the first step
    watch.begin(record_end, _finish_save)
    try:
        run(argv)
    except SystemExit as request:  # --help, or a stranger's call
        return _out(_ended_early(request))
    except Exception as error:
        if isinstance(error, TOLD_BY_MESSAGE):  # by torchrun as well, without where in our code
            error.__traceback__ = error.__cause__ = None
        tell_launcher(error)
        return _out(_failed(error))
    return _out(record_end(0, "finished"))


def _ended_early(request: SystemExit) -> int:
    code = request.code if isinstance(request.code, int) else int(request.code is not None)
    reason = f"sys.exit({request.code!r})"
    if code:
        log.error("ended by %s", watch.fail(code, reason))
    else:  # after --help all ranks are done; anywhere else they cannot go on without this one
        watch.fail(int(not {"-h", "--help"} & set(sys.argv)), reason)
    return record_end(code, reason)


def _failed(error: Exception) -> int:
    code, reason, is_final = _code(error), _reason(error), getattr(error, "is_final", False)
    if isinstance(error, TOGETHER):
        if isinstance(error, Rank0Failed) and code == 1:
            watch.await_verdict(2.0)  # rank 0's letter says more, and the launcher must blame it
        watch.leave_quietly()
    elif is_peer_loss(error):
        watch.await_verdict(2.0)  # who is gone, and why, says more than that the line is dead
        watch.seek_missing()
        reason = f"lost the connection to another rank: {reason.splitlines()[0]}"
        watch.fail(code, reason)
        log.error(reason)
        code = record_end(code, reason)
        _finish_save()
        return code
    else:
        told = f"{type(error).__name__}: {reason}" if code == 1 else reason
        watch.fail(code, told, final=is_final)
    _tell(error)
    return record_end(code, reason, is_final)


def _out(code: int) -> int:
    """`code`, to a process that was started alone; one of several ends here.

    Not by way of the interpreter's teardown: threads of torch and of the store that are still about
    there can abort a process whose run is complete.
    """
    if promised_world_size() > 1 and not is_rehearsal():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def close_at_end(folder: RunFolder) -> None:
    """From now on the end of this process leaves code and reason in `folder`, or removes it."""
    _claimed[:] = [folder]


@contextmanager
def exit_recorded(folder: RunFolder | None) -> Iterator[None]:
    """Leave exit code and reason in the run folder, when rank 0 holds it, however the run ends."""
    if folder is not None:
        close_at_end(folder)
    try:
        yield
    except Exception as error:
        if folder is not None and not is_peer_loss(error):
            with suppress(OSError):
                _close(folder, _code(error), _reason(error))
            if isinstance(error, TOGETHER) or promised_world_size() == 1:  # nobody waits for it
                folder.release()  # after the save under way
                _claimed.clear()
        raise
    if folder is not None:
        folder.finish(0, "finished")
        _claimed.clear()


def _close(folder: RunFolder, code: int, reason: str) -> None:
    """Leave code and reason in `folder`; or nothing of a run that bad input kept from beginning."""
    if code == BadInput.exit_code and folder.withdraw():
        _claimed.clear()
    else:
        folder.finish(code, reason)


def record_end(code: int, reason: str, is_final: bool = False) -> int:
    """Leave code and reason where launch.sh and a person look; the code to end with.

    A launcher restarts what ends with anything but 0. Under launch.sh, which is told the true code
    beside, a process ends with 0 when starting it again would end in the same way.
    """
    if code != 0:
        for folder in list(_claimed):
            with suppress(OSError):
                _close(folder, code, reason)
    file = os.environ.get("LOCKSTEP_EXIT")
    if not file:
        return code
    # The first of a host speaks for it; of one that cannot, another tells.
    with suppress(OSError):  # a full disk; a launcher that is gone took the file with it
        if is_first_of_host() or (code == 1 and not Path(file).stat().st_size):
            Path(file).write_text(f"{code}\n{' '.join(reason.split())}\n")
    return 0 if is_final or code in (BadInput.exit_code, Stopped.exit_code) else code


def _finish_save() -> None:
    """What rank 0 still owes when it ends for another's sake: the snapshot is whole, and else all
    steps since the checkpoint before would be lost."""
    for folder in _claimed:
        if folder.is_saving:
            say("a save is under way, and finished first")
            folder.finish_save(LAST_WORK_S)


def _code(error: Exception) -> int:
    return int(getattr(error, "exit_code", 1))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _tell(error: Exception) -> None:
    if isinstance(error, Rank0Failed):
        log.info("rank 0 failed: %s", error)
    elif isinstance(error, Stopped):
        log.info("%s", error)
    elif isinstance(error, TOGETHER):
        tells = stands_for_rank0() or _code(error) == BadInput.exit_code
        log.log(logging.ERROR if tells else logging.INFO, "%s", error)
    elif isinstance(error, (*TOLD_BY_MESSAGE, OSError)):
        log.error("%s", error)
    else:
        log.critical("%s", "".join(traceback.format_exception(error)).rstrip())
