"""torchrun as launch.sh starts it: one host's agent, of a job whose hosts may come and go.

python -m ddp.launcher [torchrun's arguments] train.py [train.py's arguments]

`--rdzv-backend=elastic` is torch's c10d rendezvous with a few differences. The ranks meet in the
same store as the agents, on the host that holds it, which is always the first: torch's own moves
the ranks' store with rank 0, tells it only to those that had none, and gives the keys of one start
to the next. A number of hosts that the run cannot be shared by is passed over: those too many wait.
"""

import atexit
import ctypes
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed.run as torchrun
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException, api
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as dynamic
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher import api as launch

from utils.errors import BadInput

_FIRST_HOST_S = 900.0  # how long a host waits for the first one
_STORE_S = 60.0  # and any call for the store's answer, once it was reached
_MORE_HOSTS_S = 5  # how long hosts that are enough wait for more: who comes later joins the run
_FOREVER = timedelta(days=3650)  # a host that waits for others, or for its turn
_CRASHED_S = 30  # how long ranks may live on after one of them failed
_PR_SET_PDEATHSIG = 1
_BYE_S = 5.0  # how long the first host stays for the others' sake

_SIZES = "lockstep/sizes"  # where the run says by how many processes it can be shared


def said() -> str:
    """The code that this host's ranks ended with, as `engine/ending.py` leaves it; else empty."""
    with suppress(OSError, IndexError):
        return Path(os.environ["LOCKSTEP_EXIT"]).read_text().split()[0]
    return ""


def listens(pid: int) -> bool:
    """Whether a rank takes signals for a wish to stop, as from its first step on (`ddp/stop.py`):
    it handles SIGUSR1 then, which Python alone does not."""
    with suppress(OSError):
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        return bool(caught and int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


class Agent(LocalElasticAgent):
    """torch's agent; ranks that stopped because hosts come or go are no end, and no failure."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        Path(os.environ["LOCKSTEP_EXIT"]).write_text("")  # an earlier start's
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        if not hasattr(self, "_shutdown_timeout"):  # torch before 2.11 gives all of them 30 s
            super()._stop_workers(worker_group)
            return
        # Healthy ranks save first, for which torch would give them as long as crashed ones.
        healthy = worker_group.state == WorkerState.HEALTHY
        self._shutdown(timeout=self._shutdown_timeout if healthy else _CRASHED_S)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *args: Any, **kw: Any) -> None:
        pids = self._pcontext.pids().values() if self._pcontext else ()
        if death_sig == signal.SIGINT and not all(map(listens, pids)):
            death_sig = signal.SIGTERM  # what only starts would show where a Ctrl-C hit it
        super()._shutdown(death_sig, *args, **kw)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._stop_workers(worker_group)
        # A host that waits may have come back from a failure that these ranks were just ending for:
        # the next look will show how they ended, and count it.
        if worker_group.state == WorkerState.HEALTHY and said() in ("0", "1", "2"):
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
        if said() != "2":
            return said() == "75"
        hosts = worker_group.group_world_size or 1
        fitting = self._rdzv_handler.fitting(hosts)
        if fitting < hosts:
            _say(f"going on with {fitting} of {hosts} hosts")
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
            raise
        return result


class Executor(dynamic._DistributedRendezvousOpExecutor):
    """Completes a round with as many hosts as the run can be shared by; the others wait."""

    fitting: Callable[[int], int]

    def _mark_rendezvous_complete(self) -> None:
        nodes = sorted(self._state.participants)
        for node in nodes[self.fitting(len(nodes)) :]:
            del self._state.participants[node]
            self._state.wait_list.add(node)
        super()._mark_rendezvous_complete()


class Rendezvous(dynamic.DynamicRendezvousHandler):
    """The agents' meetings: each makes a start of the job, by those hosts that are there."""

    def __init__(
        self, params: RendezvousParameters, store: TCPStore, number: int, processes: int
    ) -> None:
        """Of host `number`, with as many `processes` as any, in the job whose first host holds
        `store`."""
        node = self._node_desc_generator.generate(f"{number:05d} {socket.gethostname()}")
        settings = dynamic.RendezvousSettings(
            params.run_id,
            params.min_nodes,
            params.max_nodes,
            dynamic.RendezvousTimeout(_FOREVER, timedelta(seconds=_MORE_HOSTS_S)),
            keep_alive_interval=timedelta(seconds=5),
            keep_alive_max_attempt=3,
        )
        backend = C10dRendezvousBackend(store, params.run_id)
        state = dynamic._BackendRendezvousStateHolder(backend, settings)
        super().__init__(node, settings, params.backend, store, state)
        executor = Executor(node, state, settings)
        executor.fitting = self.fitting
        self._op_executor = executor
        # Every round's ranks meet in this store, so that torch makes no other.
        self._bootstrap_store_info = RendezvousStoreInfo(store.host, store.port)
        self._shared_tcp_store_server = store
        self._is_first, self._processes = number == 0, processes

    def next_rendezvous(self) -> RendezvousInfo:
        """The next round, whose number tells its ranks' keys in the store from all others'."""
        few, many = self._settings.min_nodes, self._settings.max_nodes
        _say(f"waiting for the hosts of the job ({few} to {many})")
        info = super().next_rendezvous()
        os.environ["LOCKSTEP_START"] = str(self._state_holder.state.round)
        _say(f"host {info.rank + 1} of {info.world_size}")
        return info

    def num_nodes_waiting(self) -> int:
        """How many hosts wait to be let in; none while the run could not be shared by more."""
        waiting = super().num_nodes_waiting()
        inside = len(self._state_holder.state.participants)
        return waiting if waiting and self.fitting(inside + waiting) > inside else 0

    def fitting(self, hosts: int) -> int:
        """As many of `hosts` as the run can be shared by; all, where that is not known, or none."""
        if not self._store.check([_SIZES]):
            return hosts
        sizes = json.loads(self._store.get(_SIZES))
        some = range(self._settings.min_nodes, min(hosts, self._settings.max_nodes) + 1)
        return max((n for n in some if n * self._processes in sizes), default=hosts)

    def shutdown(self) -> bool:
        """Leave; the first host ends the job, and holds the store until the others know."""
        self._stop_heartbeats()
        with suppress(RendezvousError):
            self._op_executor.run(_leave, self._get_deadline(timedelta(seconds=_STORE_S)))
        if not self._is_first:
            return True
        closed = super().shutdown()
        until = time.monotonic() + _BYE_S
        while self._others() and time.monotonic() < until:
            time.sleep(0.1)
        return closed

    def _others(self) -> bool:
        self._state_holder.sync()
        state = self._state_holder.state
        return bool(state.participants or state.wait_list or state.redundancy_list)


def _leave(context: dynamic._RendezvousContext, _deadline: float) -> dynamic._Action:
    """What to do next to be in none of the lists, that the others need not miss this host."""
    node, state = context.node, context.state
    if node in state.participants:
        return dynamic._Action.REMOVE_FROM_PARTICIPANTS
    if node in state.wait_list:
        return dynamic._Action.REMOVE_FROM_WAIT_LIST
    if node in state.redundancy_list:
        return dynamic._Action.REMOVE_FROM_REDUNDANCY_LIST
    return dynamic._Action.FINISH


def meeting(arguments: list[str], params: RendezvousParameters) -> Rendezvous:
    """This host's part in the job's meetings; BadInput when it was started unlike the first."""
    host, port = parse_rendezvous_endpoint(params.endpoint, default_port=29500)
    number, processes_each = (params.get_as_int(key, 0) or 0 for key in ("host", "processes"))
    store = TCPStore(
        host,
        port,
        is_master=number == 0,
        wait_for_workers=False,
        timeout=timedelta(seconds=_FIRST_HOST_S),
    )
    store.set_timeout(timedelta(seconds=_STORE_S))
    mine = json.dumps([f"NPROC={processes_each}", *arguments])
    firsts = store.compare_set("lockstep/started", "", mine).decode()
    if firsts != mine:
        raise BadInput(f"this host was started with {mine}, the job with {firsts}")
    return Rendezvous(params, store, number, processes_each)


def main() -> int:
    """torchrun, without its traceback where that tells nothing."""
    # When launch.sh is killed its ranks save and end.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Slurm's warning, of which torchrun knows nothing.
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    api._terminate_process_handler = _once  # type: ignore[assignment]
    launch.LocalElasticAgent = Agent  # type: ignore[attr-defined]
    os.environ.pop("LOCKSTEP_START", None)
    if "LOCKSTEP_EXIT" not in os.environ:  # launch.sh, which reads it, did not start this
        with tempfile.NamedTemporaryFile(prefix="lockstep-", delete=False) as file:
            os.environ["LOCKSTEP_EXIT"] = file.name
        atexit.register(os.unlink, file.name)
    program = next(at for at, word in enumerate(sys.argv) if word.endswith("train.py"))
    rendezvous_handler_registry.register("elastic", partial(meeting, sys.argv[program + 1 :]))
    try:
        torchrun.main()
    except SignalException:
        return 1
    except BadInput as error:
        _say(f"error: {error}")
        return error.exit_code
    except RendezvousClosedError:
        _say("the job has ended")
        return 0
    except Exception as error:
        if said() in ("2", "75"):
            return 1
        if not isinstance(error, RendezvousConnectionError):
            raise
        if said() == "0":
            return 0
        _say("error: the first host is gone, and with it the job: start it again (--resume auto)")
        return 1
    return 0


def _once(number: int, frame: FrameType | None) -> None:
    """Some send a signal to every process of a job: torchrun hears it once more from launch.sh,
    and a second one would make it leave before its ranks have saved."""
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(other, lambda *_: None)  # Python would tell of one that is ignored only now
    logging.disable(logging.WARNING)  # torch tells each process that it passes the signal on to
    _heard(number, frame)


_heard = api._terminate_process_handler


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
