"""torch's agent of one host, for ranks that save before they end, and hosts that come and go.

Built on private names of torch's: where one is missing, importing this is an AttributeError or an
ImportError, and `ddp/launcher.py` goes on without it.
"""

import logging
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.multiprocessing import SignalException, api
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
from torch.distributed.launcher import api as launch
from torch.distributed.launcher.api import LocalElasticAgent  # type: ignore[attr-defined]

from ddp import outcome
from ddp.end import LAST_WORK_S
from ddp.rendezvous import Rendezvous, meeting

# How long ranks may live on after one of them failed: rank 0 finishes the save under way. One that
# is stopped besides, and can neither end itself nor be ended by its neighbours, is killed then.
_CRASHED_S = LAST_WORK_S

# A method that torch calls by another name would be overridden in vain.
attrgetter(
    "_start_workers", "_stop_workers", "_restart_workers", "_monitor_workers", "_exit_barrier",
    "_shutdown",
)(LocalElasticAgent)  # fmt: skip


class Agent(LocalElasticAgent):
    """torch's agent, which lets ranks save; those that stopped because hosts come or go are no end,
    and no failure."""

    _listened = False  # whether a rank did, when they were last told to end

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        outcome.forget()  # an earlier start's
        started: dict[int, Any] = super()._start_workers(worker_group)
        ranks: Any = self._pcontext
        ranks.close = partial(_close, ranks.close)  # torch does, when it sees that one has failed
        return started

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        # Healthy ranks save first; torch before 2.11 gives all of them 30 s.
        if worker_group.state == WorkerState.HEALTHY and hasattr(self, "_shutdown_timeout"):
            self._shutdown(timeout=self._shutdown_timeout)
        else:
            super()._stop_workers(worker_group)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *args: Any, **kw: Any) -> None:
        pids = self._pcontext.pids().values() if self._pcontext else ()
        listen = [_listens(pid) for pid in pids]
        self._listened = any(listen)
        if death_sig == signal.SIGINT and not all(listen):
            death_sig = signal.SIGTERM  # what only starts would show where a Ctrl-C hit it
        super()._shutdown(death_sig, *args, **kw)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._stop_workers(worker_group)
        # A host that waits may have come back from a failure that these ranks were just ending for:
        # the next look will show how they ended, and count it.
        if worker_group.state == WorkerState.HEALTHY and outcome.said() in ("0", "1", "2"):
            return
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.SUCCEEDED and self._goes_on(worker_group):
            super()._restart_workers(worker_group)
            return RunResult(state=WorkerState.HEALTHY)
        return result

    def _goes_on(self, worker_group: WorkerGroup) -> bool:
        """Whether the ranks stopped, though nobody asked this host, or were too many."""
        if not isinstance(self._rdzv_handler, Rendezvous):
            return False
        if outcome.said() != "2":
            return outcome.said() == "75"
        hosts = worker_group.group_world_size or 1
        fitting = self._rdzv_handler.fitting(hosts)
        if fitting < hosts:
            print(f"going on with {fitting} of {hosts} hosts", file=sys.stderr)
        return fitting < hosts

    def _exit_barrier(self) -> None:
        if not isinstance(self._rdzv_handler, Rendezvous):  # which has an end of its own
            super()._exit_barrier()  # type: ignore[no-untyped-call]

    def run(self, role: str = "default") -> RunResult:
        """What the ranks end with; a host that is told to stop leaves, and the others go on."""
        try:
            result: RunResult = super().run(role)
        except SignalException:
            if isinstance(self._rdzv_handler, Rendezvous):
                self._rdzv_handler.shutdown()
            if not self._listened and not outcome.said():
                outcome.say("75")
                print("stopped before the first step", file=sys.stderr)
            raise
        return result


def _listens(pid: int) -> bool:
    """Whether a rank takes signals for a wish to stop, as from its first step on (`ddp/stop.py`):
    it handles SIGUSR1 then, which Python alone does not."""
    with suppress(OSError):
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        return bool(caught and int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


def _close(
    close: Callable[..., None], death_sig: signal.Signals | None = None, timeout: int | None = None
) -> None:
    """`close` the ranks, in the time of crashed ones unless another is given: torch's own is 30 s
    there, whatever it was told."""
    close(death_sig, _CRASHED_S if timeout is None else timeout)


def install(arguments: list[str]) -> None:
    """Have torchrun use this agent, and for `--rdzv-backend=elastic` these meetings, of hosts that
    all give train.py the same `arguments`."""
    api._terminate_process_handler = _once  # type: ignore[assignment]
    launch.LocalElasticAgent = Agent  # type: ignore[attr-defined]
    rendezvous_handler_registry.register("elastic", partial(meeting, arguments))


def _once(number: int, frame: FrameType | None) -> None:
    """Some send a signal to every process of a job: torchrun hears it once more from launch.sh,
    and a second one would make it leave before its ranks have saved."""
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(other, lambda *_: None)  # Python would tell of one that is ignored only now
    logging.disable(logging.WARNING)  # torch tells each process that it passes the signal on to
    _heard(number, frame)


_heard = api._terminate_process_handler
