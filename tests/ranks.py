"""Real gloo groups for tests: forked ranks of one process that has imported torch once."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_fork = multiprocessing.get_context("fork")


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(rank, *args)` returned on each rank of a gloo group; fails if any rank did."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "store")
        pipes, processes = [], []
        for rank in range(world_size):
            receiver, sender = _fork.Pipe(duplex=False)
            process = _fork.Process(
                target=_one_rank, args=(rank, world_size, meeting, sender, function, args)
            )
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        answers = [_answer(pipe) for pipe in pipes]
        for process in processes:
            process.join()
    failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(answers) if not ok]
    assert not failures, "\n".join(failures)
    return [value for _, value in answers]


def _answer(pipe: Connection) -> tuple[bool, Any]:
    try:
        answer: tuple[bool, Any] = pipe.recv()
    except EOFError:
        return False, "ended without an answer"
    return answer


def _one_rank(
    rank: int,
    world_size: int,
    meeting: str,
    sender: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(meeting, world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        value = function(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
        sender.send((True, value))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
        os._exit(0)
