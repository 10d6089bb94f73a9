"""What wakes a thread that waits: its time, whoever rings, and any signal that Python handles."""

import os
import select
import signal
from contextlib import suppress


class Bell:
    """A signal rings it at once, even while the main thread is deep inside a collective."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(ValueError):  # only the main thread may
            signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_not_for_children)

    def ring(self) -> None:
        """Wake who waits."""
        with suppress(BlockingIOError):  # it has been rung often enough
            os.write(self._in, b"\0")

    def wait(self, seconds: float) -> bytes:
        """The signals that came meanwhile, and a zero for each ring; empty when time is up."""
        select.select([self._out], [], [], seconds)
        with suppress(BlockingIOError):
            return os.read(self._out, 4096)
        return b""


def _not_for_children() -> None:
    """What a forked process hears is its own, and dies of what it does not handle itself."""
    signal.set_wakeup_fd(-1)
    if signal.getsignal(signal.SIGTERM) is heard_early:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def heard_early(_number: int, _frame: object) -> None:
    """Handles a SIGTERM before the first step: whoever waits at the bell decides."""
