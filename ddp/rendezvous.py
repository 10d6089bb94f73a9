"""The meetings of an elastic job's hosts: torch's c10d rendezvous with a few differences.

The ranks meet in the same store as the agents, on the host that holds it, which is always the
first: torch's own moves the ranks' store with rank 0, tells it only to those that had none, and
gives the keys of one start to the next. A number of hosts that the run cannot be shared by is
passed over: those too many wait. Built on private names of torch's, as `ddp/agent.py` is.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as dynamic
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from utils.errors import BadInput

_FIRST_HOST_S = 900.0  # how long a host waits for the first one
_STORE_S = 60.0  # and any call for the store's answer, once it was reached
_MORE_HOSTS_S = 5  # how long hosts that are enough wait for more: who comes later joins the run
_FOREVER = timedelta(days=3650)  # a host that waits for others, or for its turn
_BYE_S = 5.0  # how long the first host stays for the others' sake

_SIZES = "lockstep/sizes"  # where the run says by how many processes it can be shared


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
        print(f"waiting for the hosts of the job ({few} to {many})", file=sys.stderr)
        info = super().next_rendezvous()
        os.environ["LOCKSTEP_START"] = str(self._state_holder.state.round)
        print(f"host {info.rank + 1} of {info.world_size}", file=sys.stderr)
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
