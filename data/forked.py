"""Forked processes that are known to live.

A fork copies every lock as it is, and the threads that would give it back are not in the copy. Up
to CPython 3.11 the interpreter itself waits for such a lock in the child, for ever, before any code
of ours runs there: a thread of gloo that had just begun to release a tensor is enough. So a child
says that it lives, and one that does not is replaced.
"""

import os
import select
import signal
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess
from typing import Any

_LIVES_AFTER_S = 2.0  # at the latest, on a crowded machine; then twice as long


class _Popen(Popen):
    def _launch(self, process_obj: Any) -> None:
        wait_s = _LIVES_AFTER_S
        while not self._lives(process_obj, wait_s):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.close()
            wait_s *= 2

    def _lives(self, process_obj: Any, wait_s: float) -> bool:
        """Fork; whether the child says that it lives, or has died, which its owner sees."""
        said, process_obj.says = os.pipe()
        super()._launch(process_obj)  # type: ignore[misc]
        os.close(process_obj.says)
        found, _, _ = select.select([said], [], [], wait_s)
        os.close(said)
        return bool(found)


class _Process(ForkProcess):
    says: int  # a pipe's end

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802, its name in multiprocessing
        return _Popen(process_obj)

    def _bootstrap(self, parent_sentinel: Any = None) -> int:
        os.write(self.says, b"\0")
        os.close(self.says)
        code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        return code


class LivingForkContext(ForkContext):
    """multiprocessing's `fork`, whose processes are known to live once they are started."""

    Process = _Process


def died(processes: Sequence[BaseProcess]) -> RuntimeError | None:
    """The error that tells which of `processes` has died, and how; None when all of them live."""
    closed = wait([process.sentinel for process in processes], timeout=1.0)
    for process in processes:
        if process.sentinel in closed:
            process.join()
            code = process.exitcode or 0
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return RuntimeError(f"a loading worker (process {process.pid}) is gone: {how}")
    return None
