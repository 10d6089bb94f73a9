"""Who has stopped, and where: each process says where it stands, and the silent one is named.

A process that works marks its line on the board of its host (`ddp/board.py`), a write to memory. A
thread looks at the board (`ddp/lookout.py`); nothing travels while all is well. When somebody is
silent for longer than its phase allows, one rank asks all of them: those that do not answer have
stopped, and of those that do, the one that has begun the fewest collectives is what the others wait
for. It is named with its stack, and every process ends (`ddp/end.py`); one that cannot end itself
is killed by its neighbours, so that the launcher blames it and no other.
"""

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Generator
from contextlib import closing, suppress
from typing import TypeVar

from ddp.bell import Bell, heard_early
from ddp.board import open_board
from ddp.end import End, LastWork, OnEnd
from ddp.lookout import Lookout
from ddp.mail import Mail, has_launcher_store

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1


class Watch:
    """What there is of one process: its line on the board, its mail, its lookout and its end."""

    def __init__(self, on_end: OnEnd, last_work: LastWork) -> None:
        rank = int(os.environ.get("RANK", "0"))
        self.board = open_board(rank)
        self.mail = Mail(rank, int(os.environ.get("WORLD_SIZE", "1")))
        self.bell = Bell()
        self.end = End(self.board, self.mail, on_end, last_work)
        self.lookout = Lookout(self.board, self.mail, self.bell, self.end)


_watch: Watch | None = None  # a process has one main thread, and one place where it stands


def begin(on_end: OnEnd, last_work: LastWork = lambda: None) -> None:
    """Watch this process and, with the other ranks, all of them.

    A thread calls `on_end` before a verdict ends this process, and `last_work` when it ends for
    what befell another rank: while that lasts, the launcher may kill it.
    """
    global _watch
    with suppress(AttributeError, ValueError, OSError):
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR2, all_threads=False)
    if has_launcher_store():  # a launcher that is killed cannot end its ranks: they save and stop
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _watch = Watch(on_end, last_work)
    if has_launcher_store():
        _watch.lookout.open_mail()
        signal.signal(signal.SIGTERM, heard_early)


def limit(start_s: float, hang_s: float) -> None:
    """Seconds that a process may be silent: before its first step, and from then on."""
    if _watch is not None:
        _watch.board.limit(start_s, hang_s)


def mark(phase: str | None = None, step: int | None = None) -> None:
    """Note that this process moved: into `phase`, having done `step` steps (None: as before)."""
    if _watch is not None:
        _watch.board.mark(phase, step)


def marked(items: Generator[T], waiting: str, working: str) -> Generator[T]:
    """Each of `items`; the watch knows when this process waits for one, and when it works on it."""
    with closing(items):
        mark(waiting)
        for item in items:
            mark(working)
            yield item
            mark(waiting)


def met() -> None:
    """The ranks have met: letters reach all of them, whoever holds the store."""
    if _watch is not None:
        _watch.lookout.open_mail()
        _watch.board.mark("start")


def fail(code: int, reason: str, *, final: bool = False) -> str:
    """Tell all ranks that this one ends now, and why; the line that they are told.

    `final`: the launcher need not start them again.
    """
    return reason if _watch is None else _watch.end.by_failure(code, reason, final=final)


def leave_quietly() -> None:
    """All ranks end together and know why: nobody is to wonder where this one is."""
    if _watch is not None:
        _watch.board.leave()


def await_verdict(seconds: float) -> None:
    """Wait for the reason why another rank is gone; does not return when one comes."""
    if _watch is not None:
        if _watch.mail.is_open:
            _watch.bell.ring()
            time.sleep(seconds)
        _watch.end.give_way()


def seek_missing() -> None:
    """Ask all ranks who is gone; does not return where that is found out."""
    if _watch is not None:
        _watch.lookout.seek_missing()


def close() -> None:
    """All ranks are done: stop watching. What is left of this process ends within the hang limit,
    or is ended."""
    if _watch is not None:
        _watch.end.close()
        _watch.bell.ring()
        _watch.board.mark("end")
        _watch.board.leave()
        _watch.mail.send([_watch.mail.rank], {})  # its reader ends
        faulthandler.dump_traceback_later(max(1.0, _watch.board.limits.hang_s), exit=True)
