"""The meetings of an elastic job: which hosts take part, when they are disturbed, how it ends; and
what starts where they are not to be had.

./launch.sh test tests/ddp/test_launcher.py

Each test is a process of its own: a store's threads would not survive the forks of other tests.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.agent.server.api import RunResult, SimpleElasticAgent, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousParameters
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as dynamic

from ddp import agent, launcher, rendezvous
from ddp.agent import Agent
from ddp.rendezvous import Rendezvous, meeting
from tests.faults import free_port
from tests.ranks import run_ranks
from utils.errors import BadInput

POSSIBLE = json.dumps([1, 2, 3, 4, 6, 8, 12, 24])  # a global batch of 24


class Host:
    """One host of a job of 1 to 6, with two processes each; `meet` goes to its next meeting."""

    def __init__(self, number: int, port: int, arguments: list[str]) -> None:
        conf = {"host": number, "processes": 2}
        params = RendezvousParameters("elastic", f"127.0.0.1:{port}", "lockstep", 1, 6, **conf)
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


Join = Callable[..., Host]


def alone(scenario: Callable[..., None], *args: object) -> None:
    """Run `scenario(join, *args)` in a process of its own."""
    run_ranks(1, _alone, scenario, *args)


def _alone(_rank: int, scenario: Callable[..., None], *args: object) -> None:
    rendezvous._MORE_HOSTS_S = rendezvous._BYE_S = 0.5
    dynamic._delay = lambda seconds: time.sleep(0.02)
    port = free_port()
    scenario(lambda number, *arguments: Host(number, port, list(arguments)), *args)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def inside(hosts: list[Host]) -> list[Host]:
    """Those that take part, once as many do as can; ranked by their numbers."""
    fitting = hosts[0].meetings.fitting(len(hosts))
    until(lambda: sum(host.place is not None for host in hosts) == fitting)
    there = [host for host in hosts if host.place]
    assert [host.place for host in there] == [(rank, fitting) for rank in range(fitting)]
    return there


def hosts_that_are_too_many(join: Join) -> None:
    hosts = [join(number) for number in range(5)]
    hosts[0].meetings._store.set("lockstep/sizes", POSSIBLE)
    for host in hosts:
        host.meet()
    four = inside(hosts)  # ten processes cannot share the batch
    assert len(four) == 4
    assert [host.meetings.num_nodes_waiting() for host in four] == [0, 0, 0, 0]

    hosts.append(join(5))
    hosts[5].meet()
    until(lambda: four[0].meetings.num_nodes_waiting() == 2)
    for host in four:
        host.meet()
    assert len(inside(hosts)) == 6

    # One leaves: four of the five that are left go on, and the fifth waits until the job ends.
    hosts.pop(2).meetings.shutdown()
    for host in hosts:
        host.meet()
    four = inside(hosts)
    [fifth] = [host for host in hosts if host not in four]
    assert len(four) == 4 and not fifth.ended
    hosts[0].meetings.shutdown()
    until(lambda: fifth.ended)


def test_hosts_that_are_too_many_for_the_batch_wait_and_disturb_nobody() -> None:
    alone(hosts_that_are_too_many)


def three_starts(join: Join) -> None:
    host, names = join(0), set()
    for _ in range(3):
        host.meet()
        until(lambda: host.place is not None)
        names.add(os.environ["LOCKSTEP_START"])
    assert len(names) == 3


def test_ranks_of_every_start_have_keys_of_their_own() -> None:
    alone(three_starts)


def other_arguments(join: Join) -> None:
    first = join(0, "optim.lr=0.1")
    with pytest.raises(BadInput, match=r"started with .*lr=0\.2.*the job with .*lr=0\.1"):
        join(1, "optim.lr=0.2")
    assert join(1, "optim.lr=0.1") and first


def test_a_host_that_was_started_with_other_arguments_is_turned_away() -> None:
    alone(other_arguments)


class Group:
    """What an agent knows of its ranks."""

    def __init__(self, hosts: int) -> None:
        self.group_world_size = hosts
        self.state = WorkerState.HEALTHY


def after(join: Join, file: Path, said: str, hosts: int, elastic: bool, goes_on: bool) -> None:
    file.write_text(said)
    os.environ["LOCKSTEP_EXIT"] = str(file)
    started = []
    LocalElasticAgent._monitor_workers = lambda *_: RunResult(state=WorkerState.SUCCEEDED)
    LocalElasticAgent._restart_workers = lambda _, group: started.append(group)
    agent = object.__new__(Agent)
    first = join(0)
    first.meetings._store.set("lockstep/sizes", POSSIBLE)
    agent._rdzv_handler = first.meetings if elastic else None
    state = agent._monitor_workers(Group(hosts)).state
    assert state == (WorkerState.HEALTHY if goes_on else WorkerState.SUCCEEDED)
    assert bool(started) == goes_on


@pytest.mark.parametrize(
    ("said", "hosts", "elastic", "goes_on"),
    [
        ("75\nstopped by SIGTERM", 2, True, True),  # for the sake of a host that came or left
        ("75\nstopped by SIGTERM", 2, False, False),
        ("2\n24 cannot be divided by 10 processes", 5, True, True),  # by 8 it can
        ("2\nno such model", 4, True, False),
        ("0\nfinished", 5, True, False),
        ("1\nthree restarts without progress", 2, True, False),
        ("", 2, True, False),
    ],
)
def test_an_agent_starts_ranks_again_that_stopped_for_others_and_no_other(
    said: str, hosts: int, elastic: bool, goes_on: bool, tmp_path: Path
) -> None:
    alone(after, tmp_path / "said", said, hosts, elastic, goes_on)


def on_another_torch(
    _rank: int, owner: object, name: str, program: Path, backend: str, code: int
) -> None:
    delattr(owner, name)
    sys.modules.pop("ddp.agent", None)
    sys.modules.pop("ddp.rendezvous", None)
    os.environ["LOCKSTEP_EXIT"] = str(program.parent / "exit")
    how = [f"--rdzv-backend={backend}", f"--master-port={free_port()}", "--nproc-per-node=2"]
    sys.argv = ["launcher", *how, str(program), "--config", "x.yaml"]
    assert launcher.main() == code


@pytest.mark.parametrize(
    ("owner", "name"),
    [(dynamic, "_DistributedRendezvousOpExecutor"), (SimpleElasticAgent, "_restart_workers")],
)
@pytest.mark.parametrize(("backend", "code"), [("static", 0), ("elastic", 2)])
def test_a_torch_without_a_private_name_starts_the_ranks_of_a_fixed_number_of_hosts(
    owner: object,
    name: str,
    backend: str,
    code: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = tmp_path / "train.py"
    program.write_text("import os, sys; print('rank', os.environ['RANK'], 'of', sys.argv[1:])")
    run_ranks(1, on_another_torch, owner, name, program, backend, code)
    said = capfd.readouterr()
    assert said.err.count(f"does not fit torch {torch.__version__}") == 1
    assert name in said.err
    assert "Traceback" not in said.err
    ranks = sorted(line for line in said.out.splitlines() if line.startswith("rank"))
    both = [f"rank {rank} of ['--config', 'x.yaml']" for rank in (0, 1)]
    assert ranks == (both if code == 0 else [])


ONE_FAILS = """
import os, signal, sys, time
from pathlib import Path
ready = Path(__file__).with_name("ready")
if os.environ["RANK"] == "1":
    while not ready.exists():
        time.sleep(0.02)
    sys.exit(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready.touch()
time.sleep(60)
"""


def one_fails(_rank: int, program: Path) -> None:
    agent._CRASHED_S = 2
    os.environ["LOCKSTEP_EXIT"] = str(program.parent / "exit")
    ports = ["--rdzv-backend=static", f"--master-port={free_port()}"]
    sys.argv = ["launcher", *ports, "--nproc-per-node=2", str(program)]
    with pytest.raises(ChildFailedError):
        launcher.main()


def test_ranks_are_given_our_time_and_not_torchs_30_s_when_one_of_them_failed(
    tmp_path: Path,
) -> None:
    program = tmp_path / "train.py"
    program.write_text(ONE_FAILS)
    start = time.monotonic()
    run_ranks(1, one_fails, program)
    assert 2 <= time.monotonic() - start < 20
