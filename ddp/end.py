"""The end of a process, for what befell it or another rank: told to all of them, and taken once."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ddp.blame import one_line
from ddp.board import Board
from ddp.inquiry import answer
from ddp.mail import Letter, Mail, is_elastic

OTHERS_WAIT_S = 0.6  # the launcher blames the process that ends first
LAST_WORK_S = 120  # how long a process may live on after one of the job failed
_BAD_INPUT = 2  # bad input: one message, by the rank that found it
_LEFT = 75  # to be gone on with: of an elastic job, without the host that found it

# Records code, reason, and whether to start again is in vain; returns the code to end with.
OnEnd = Callable[[int, str, bool], int]
# What this process still does before it ends for another's sake: within limits, and without a word
# in the log, for the main thread may be stuck holding any lock.
LastWork = Callable[[], None]


class Hang(RuntimeError):
    """This process made no progress, and was named for it."""


class End:
    """The one end that this process can have: by a verdict, by its own failure, or well.

    A verdict is a letter: `code`, `line` and `culprits` (ranks); of a hang also `report`, `judge`
    (a rank) and `frozen`: the culprits cannot end themselves. `final`: to start again is in vain.
    """

    def __init__(self, board: Board, mail: Mail, on_end: OnEnd, last_work: LastWork) -> None:
        self._board, self._mail = board, mail
        self._on_end, self._last_work = on_end, last_work
        self._taken = threading.Lock()  # and not given back by who ends this process
        self.closed = threading.Event()

    def for_all(self, verdict: Letter) -> None:
        """End every process for a `verdict`."""
        self._mail.send_others(verdict)
        self.this_process(verdict)

    def this_process(self, verdict: Letter) -> None:
        """End this process for a `verdict`: the guilty at once, the others a little later."""
        if self.closed.is_set() or not self._taken.acquire(blocking=False):
            return
        rank, line = self._board.rank, verdict["line"]
        guilty = rank in verdict["culprits"]
        code = _LEFT if self._can_do_without(verdict) else verdict["code"]
        if verdict.get("judge") == rank:  # at once: the launcher ends all when the first one ends
            say(verdict["report"])
        elif code not in (0, _BAD_INPUT) and not guilty:
            say(f"[rank {rank}] ends: {line}")
        try:
            code = self._on_end(code, line, verdict.get("final", False))
            self._board.leave()
            if verdict.get("frozen"):
                self._board.kill([other for other in verdict["culprits"] if other != rank])
            if guilty and "report" in verdict:
                tell_launcher(Hang(line))
            if not guilty:
                time.sleep(OTHERS_WAIT_S)
                self._last_work()
        finally:
            os._exit(code)

    def _can_do_without(self, verdict: Letter) -> bool:
        """Whether the run can go on without the host whose input was bad: not the first."""
        here = {standing.rank for standing in self._board.standings()}
        return (
            is_elastic()
            and verdict["code"] == _BAD_INPUT
            and not {0, *here} & set(verdict["culprits"])
        )

    def by_failure(self, code: int, reason: str, *, final: bool) -> str:
        """Tell all ranks that this one ends, and why; then the caller ends it. Returns the line."""
        self._taken.acquire()
        mine = answer(self._board)
        self._board.leave()
        line = one_line([(mine.standing, mine.host)], "failed") + f": {reason}"
        culprits = [self._board.rank]
        self._mail.send_others({"code": code, "line": line, "culprits": culprits, "final": final})
        return line

    @property
    def has_come(self) -> bool:
        """Whether a verdict is being carried out, or this process failed."""
        return self._taken.locked()

    def give_way(self) -> None:
        """Return unless this process is ending; of the threads that could end it one does."""
        if self._taken.locked():  # not taken for a moment: a verdict that finds it so is dropped
            self._taken.acquire()

    def close(self) -> None:
        """From now on no verdict ends this process."""
        with self._taken:
            self.closed.set()


def tell_launcher(error: BaseException) -> None:
    """Leave `error` where torchrun looks for the reason of a failure, if there is room for it."""
    try:
        get_error_handler().record_exception(error)
    except OSError:
        with suppress(OSError):  # torchrun fails over half a file
            Path(os.environ["TORCHELASTIC_ERROR_FILE"]).unlink()


def say(text: str) -> None:
    """Write to standard error past every lock: the main thread may be stuck holding one."""
    with suppress(OSError):
        os.write(2, text.encode() + b"\n")
