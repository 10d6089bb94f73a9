"""Who has stopped, and where: each process says where it stands, and the silent one is named.

What the other modules call; the work is done in watchman.
"""

import ctypes
import faulthandler
import signal
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import TypeVar

from ddp.bell import heard_early
from ddp.mail import has_launcher_store
from ddp.watchman import Watchman

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1

_watch: Watchman | None = None  # a process has one main thread, and one place where it stands


def begin(on_end: Callable[[int, str], int]) -> None:
    """Watch this process and, with the other ranks, all of them."""
    global _watch
    with suppress(AttributeError, ValueError, OSError):
        faulthandler.register(signal.SIGUSR2, all_threads=False)
    if has_launcher_store():  # a launcher that is killed cannot end its ranks: they save and stop
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _watch = Watchman(on_end)
    if has_launcher_store():
        signal.signal(signal.SIGTERM, heard_early)


def limit(start_s: float, hang_s: float) -> None:
    """Seconds that a process may be silent: before its first step, and from then on."""
    if _watch is not None:
        _watch.set_limits(start_s, hang_s)


def mark(phase: str | None = None, step: int | None = None) -> None:
    """Note that this process moved: into `phase`, having done `step` steps (None: as before)."""
    if _watch is not None:
        _watch.mark(phase, step)


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
        _watch.open_mail()
        _watch.mark("start")


def fail(code: int, reason: str) -> str:
    """Tell all ranks that this one ends now, and why; the line that they are told."""
    return reason if _watch is None else _watch.fail(code, reason)


def leave_quietly() -> None:
    """All ranks end together and know why: nobody is to wonder where this one is."""
    if _watch is not None:
        _watch.leave()


def await_verdict(seconds: float = 4.0) -> None:
    """Wait for the reason why another rank is gone; does not return when one comes."""
    if _watch is not None:
        _watch.await_verdict(seconds)


def close() -> None:
    """All ranks are done: stop watching."""
    if _watch is not None:
        _watch.close()
