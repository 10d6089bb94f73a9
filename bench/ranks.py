"""Ranks for a benchmark: fresh processes with the environment that torchrun gives them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from bench.paired import Block, Time, Turns, timed


def on_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(rank, *args)` returned on each rank; it joins the group by itself."""
    port = free_port()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(world_size, mp_context=spawn) as pool:
        jobs = [
            pool.submit(_one_rank, rank, world_size, port, function, args)
            for rank in range(world_size)
        ]
        return [job.result() for job in jobs]


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Apart:
    """A bare loop in a process of its own beside each rank, in a group of its own.

    So it runs as it would alone: what the other side does to its own process does not reach it.
    """

    def __init__(
        self, rank: int, world_size: int, port: int, make: Callable[..., Block], *args: Any
    ) -> None:
        """`make(*args)` makes the loop there; `port` is a free one that all ranks name."""
        spawn = multiprocessing.get_context("spawn")
        self._there, end = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(end, rank, world_size, port, make, args))
        self._process.start()
        end.close()

    def turn(self) -> Time:
        """Let the loop run one block; the time that it took there."""
        self._there.send(True)
        time: Time = self._there.recv()
        return time

    def __enter__(self) -> "Apart":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._there.send(False)  # closing is not enough: workers forked here hold it open as well
        self._process.join()


def taking_turns(bare: Apart, steps: int, cycles: int) -> Turns:
    """The turns of a program beside a bare loop whose blocks are of as many `steps`."""
    return Turns(lambda: bare.turn, steps, cycles, timed=lambda _: bare.turn())


def _serve(
    end: Connection,
    rank: int,
    world_size: int,
    port: int,
    make: Callable[..., Block],
    args: tuple[Any, ...],
) -> None:
    _become(rank, world_size, port)
    from torch import distributed

    distributed.init_process_group("gloo")
    block = make(*args)
    while end.recv():
        end.send(timed(block))
    distributed.destroy_process_group()


def _one_rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    _become(rank, world_size, port)
    return function(rank, *args)


def _become(rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
