"""The meetings of an elastic job: which hosts take part, when they are disturbed, how it ends.

./launch.sh test tests/ddp/test_launcher.py
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousParameters
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as dynamic

from ddp import launcher
from ddp.launcher import Agent, Rendezvous, meeting
from utils.errors import BadInput


class Host:
    """The meetings of one host; each `meet` goes to one more, in the background."""

    def __init__(self, number: int, port: int, arguments: list[str], hosts: str = "1:6") -> None:
        least, most = map(int, hosts.split(":"))
        conf = {"host": number, "processes": 2}
        params = RendezvousParameters(
            "elastic", f"127.0.0.1:{port}", "lockstep", least, most, **conf
        )
        self.meetings: Rendezvous = meeting(arguments, params)
        self.meetings._state_holder._cache_duration = 0  # seconds that it trusts what it knows
        self.place: tuple[int, int] | None = None
        self.ended = False

    def meet(self) -> None:
        self.place = None
        threading.Thread(target=self._meet, daemon=True).start()

    def _meet(self) -> None:
        try:
            info = self.meetings.next_rendezvous()
        except RendezvousClosedError:
            self.ended = True
            self.meetings.shutdown()
        else:
            self.place = (info.rank, info.world_size)


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Host]]:
    """Makes a host of a job and goes to its first meeting."""
    monkeypatch.setattr(launcher, "_MORE_HOSTS_S", 0.5)
    monkeypatch.setattr(dynamic, "_delay", lambda seconds: time.sleep(0.02))
    monkeypatch.setenv("LOCKSTEP_START", "")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = []

    def joined(number: int, *arguments: str) -> Host:
        host = Host(number, port, list(arguments))
        hosts.append(host)
        host.meet()
        return host

    yield joined
    for host in reversed(hosts):
        host.meetings.shutdown()


def until(reached: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_hosts_that_are_too_many_for_the_batch_wait_and_disturb_nobody(join) -> None:
    hosts = [join(0)]
    # A global batch of 24: two processes a host are possible on 1, 2, 3, 4 and 6 hosts.
    hosts[0].meetings._store.set("lockstep/sizes", json.dumps([1, 2, 3, 4, 6, 8, 12, 24]))
    hosts += [join(number) for number in (3, 4, 2, 1)]
    four, fifth = [hosts[number] for number in (0, 4, 3, 1)], hosts[2]
    until(lambda: all(host.place for host in four))
    assert [host.place for host in four] == [(0, 4), (1, 4), (2, 4), (3, 4)]  # by their numbers
    assert hosts[0].meetings.fitting(5) == 4
    assert fifth.place is None
    assert [host.meetings.num_nodes_waiting() for host in four] == [0, 0, 0, 0]

    sixth = join(5)
    until(lambda: hosts[0].meetings.num_nodes_waiting() == 2)
    for host in four:
        host.meet()
    everyone = [*four, fifth, sixth]
    until(lambda: all(host.place for host in everyone))
    assert [host.place for host in everyone] == [(rank, 6) for rank in range(6)]

    # One leaves: four of the five that are left go on, and the fifth waits.
    four[3].meetings.shutdown()
    left = [*four[:3], fifth, sixth]
    for host in left:
        host.meet()
    until(lambda: sum(host.place is not None for host in left) == 4)
    assert [host.place for host in left] == [(0, 4), (1, 4), (2, 4), (3, 4), None]

    hosts[0].meetings.shutdown()
    until(lambda: sixth.ended)


def test_ranks_of_every_start_have_keys_of_their_own(join, monkeypatch) -> None:
    host, names = join(0), []
    for _ in range(3):
        until(lambda: host.place is not None)
        names.append(launcher.os.environ["LOCKSTEP_START"])
        host.meet()
    assert len(set(names)) == 3


def test_a_host_that_was_started_with_other_arguments_is_turned_away(join) -> None:
    join(0, "optim.lr=0.1")
    with pytest.raises(BadInput, match=r"started with .*lr=0\.2.*the job with .*lr=0\.1"):
        join(1, "optim.lr=0.2")


class Group:
    """What an agent knows of its ranks."""

    def __init__(self, hosts: int) -> None:
        self.group_world_size = hosts
        self.state = WorkerState.HEALTHY


def test_an_agent_starts_as_many_as_can_share_the_run_when_there_were_too_many(
    join, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "said").write_text("2\n24 cannot be divided by 10 processes")
    monkeypatch.setenv("LOCKSTEP_EXIT", str(tmp_path / "said"))
    agent = object.__new__(Agent)
    agent._rdzv_handler = join(0).meetings
    agent._rdzv_handler._store.set("lockstep/sizes", json.dumps([1, 2, 3, 4, 6, 8, 12, 24]))
    assert [agent._goes_on(Group(hosts)) for hosts in (3, 4, 5, 6)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("said", "elastic", "goes_on"),
    [
        ("75\nstopped by SIGTERM", True, True),  # for the sake of a host that came or left
        ("75\nstopped by SIGTERM", False, False),
        ("0\nfinished", True, False),
        ("2\nno such model", True, False),
        ("1\nthree restarts without progress", True, False),
        ("", True, False),
    ],
)
def test_an_agent_starts_ranks_again_that_stopped_for_others_and_no_other(
    said: str, elastic: bool, goes_on: bool, join, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "said").write_text(said)
    monkeypatch.setenv("LOCKSTEP_EXIT", str(tmp_path / "said"))
    started = []
    monkeypatch.setattr(
        LocalElasticAgent, "_monitor_workers", lambda *_: RunResult(state=WorkerState.SUCCEEDED)
    )
    monkeypatch.setattr(LocalElasticAgent, "_restart_workers", lambda _, group: started.append(1))
    agent = object.__new__(Agent)
    agent._rdzv_handler = join(0).meetings if elastic else None
    state = agent._monitor_workers(Group(1)).state
    assert state == (WorkerState.HEALTHY if goes_on else WorkerState.SUCCEEDED)
    assert bool(started) == goes_on
