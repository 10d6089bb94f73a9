"""Runs that meet a fault: forked ranks under a small stand-in for torchrun's agent.

The stand-in does what the agent does: it holds the store, gives the ranks of a host a common
folder, ends all when one fails, and blames the one that failed first. Importing torch once and
forking makes a run cost half a second instead of ten.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # DDP imports it; once here is a second less in every rank of every run
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import train
from data.feed import Feed
from engine.ending import end
from tests.runs import QUICK

_fork = multiprocessing.get_context("fork")


class Fault(NamedTuple):
    """What happens to one rank, and where; the place is reached for the `times`-th time."""

    kind: str
    rank: int
    phase: str  # as the watch calls it; "launch" is the start before the ranks have met
    times: int = 2


class Ended(NamedTuple):
    codes: list[int | None]
    first: int  # the rank that ended first, which torchrun would blame
    seconds: float  # from the fault, or the signal, to the end of the last process
    said: str
    left: list[str]  # processes of the run that still live, files in shared memory


def _raise() -> None:
    raise ArithmeticError("injected")


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
    torch.zeros(1 << 30).add_(1)


def _kill_a_worker() -> None:
    for process in multiprocessing.active_children():
        if process.pid:
            os.kill(process.pid, signal.SIGKILL)
            return


def _hold_the_lock() -> None:
    library = ctypes.PyDLL(None)  # which keeps the interpreter's lock
    mutex = ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # for ever, whatever signals come


KINDS: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "exit": lambda: sys.exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(1000),
    "lock": _hold_the_lock,
    "memory": _limit_memory,
    "worker": _kill_a_worker,
    "pause": lambda: time.sleep(0.3),  # long enough for a signal to arrive here
    "none": lambda: None,
}


def _inject(fault: Fault, rank: int, happened: Path) -> None:
    """Patch the story of a run so that `fault` happens on its rank, in its phase."""
    count = 0

    def here() -> None:
        nonlocal count
        count += 1
        if rank == fault.rank and count == fault.times:
            happened.write_text(str(time.time()))
            KINDS[fault.kind]()

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*args: Any, **kwargs: Any) -> Any:
            here()
            return function(*args, **kwargs)

        return patched

    story: Any = train
    if fault.phase == "launch":
        story.join = before(story.join)
    elif fault.phase == "start":
        story.build_dataset = before(story.build_dataset)
    elif fault.phase == "data":
        feed: Any = Feed
        training = feed.training

        def patched_training(*args: Any) -> Generator[Any]:
            for item in training(*args):
                here()
                yield item

        feed.training = patched_training
    elif fault.phase in ("step", "evaluation"):
        build = story.network
        trains = fault.phase == "step"

        def patched_network(*args: Any) -> Any:
            ddp_model = build(*args)
            ddp_model.module.register_forward_pre_hook(
                lambda m, _: here() if m.training == trains else None
            )
            return ddp_model

        story.network = patched_network
    elif fault.phase == "save":
        story.capture = before(story.capture)
    elif fault.phase == "end":
        story.leave = before(story.leave)


def _one_rank(
    rank: int, world_size: int, port: int, folder: Path, fault: Fault, arguments: list[str]
) -> None:
    os.setsid()
    own = folder / "attempt_0" / str(rank)
    own.mkdir(parents=True)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
        TORCHELASTIC_ERROR_FILE=str(own / "error.json"),
    )
    torch.set_num_threads(1)
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False, buffering=1)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)
    _inject(fault, rank, folder / "happened")
    os._exit(end(train.run, arguments))


def _serve(port: int) -> None:
    _store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    time.sleep(1000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def meet(
    fault: Fault,
    world_size: int,
    folder: Path,
    *arguments: str,
    signals: Sequence[int] = (),
    told: Sequence[int] = (),
    whole: bool = True,
    limit_s: float = 60.0,
) -> Ended:
    """Run `train.py arguments` into `fault`; when it happens, the ranks `told` get
    `signals`, one after the other, with their workers and writers if `whole`."""
    port = free_port()
    store = _fork.Process(target=_serve, args=(port,))
    with tempfile.TemporaryDirectory() as launcher:
        place = Path(launcher)
        try:
            store.start()
            ranks = [
                _fork.Process(
                    target=_one_rank,
                    args=(
                        rank,
                        world_size,
                        port,
                        place,
                        fault,
                        [*QUICK, f"run.dir={folder}", *arguments],
                    ),
                )
                for rank in range(world_size)
            ]
            for process in ranks:
                process.start()
            happened = place / "happened"
            kill = os.killpg if whole else os.kill

            def signal_them() -> bool:
                """Whether it was time to."""
                if happened.exists():
                    for number in signals:
                        for rank in told:
                            kill(ranks[rank].pid or 0, number)
                        time.sleep(0.05)
                return happened.exists()

            first, ended = _until_the_end(ranks, signal_them, limit_s)
            since = float(happened.read_text()) if happened.exists() else ended
            left = _left_of({p.pid or 0 for p in ranks})
            left += [f.name for p in ranks for f in Path("/dev/shm").glob(f"torch_{p.pid}_*")]
            said = (place / "said").read_text(errors="replace")
            return Ended([p.exitcode for p in ranks], first, ended - since, said, left)
        finally:
            for process in (*ranks, store):
                if process.pid:
                    process.kill()
                    process.join()


def _until_the_end(
    ranks: Sequence[BaseProcess], signal_them: Callable[[], bool], limit_s: float
) -> tuple[int, float]:
    """The rank that ended first, and when the last did; the others are told like the agent does."""
    limit, first, signalled = time.monotonic() + limit_s, -1, False
    while any(process.exitcode is None for process in ranks) and time.monotonic() < limit:
        time.sleep(0.02)
        signalled = signalled or signal_them()
        gone = [rank for rank, process in enumerate(ranks) if process.exitcode is not None]
        if gone and first < 0:
            first = gone[0]
            if ranks[first].exitcode != 0:
                for rank, process in enumerate(ranks):
                    if rank != first and process.exitcode is None and process.pid:
                        os.killpg(process.pid, signal.SIGTERM)
    return first, time.time()


def _left_of(sessions: set[int]) -> list[str]:
    """The processes of these sessions that outlive their ranks by more than a moment."""
    time.sleep(0.2)  # what is killed with its parent takes as long
    return list(_of_the_sessions(sessions))


def _of_the_sessions(sessions: set[int]) -> Iterator[str]:
    """The processes, such as workers and writers, of the ranks that led these sessions."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) in sessions and state != "Z":
                    yield process.name
