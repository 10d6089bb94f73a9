"""Whole runs for tests: `train.py` in forked ranks of one process that has imported torch once."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DDP imports it; once here is a second less in every rank

import train
from checkpoint.open import read
from engine.ending import end

_fork = multiprocessing.get_context("fork")

# The quickstart without its weights, on 8 x 8 pixels: 14 steps an epoch of a few ms each.
QUICK = (
    "model.weights=null",
    "data.image_size=null",
    "train.epochs=2",
    "log.every_steps=1",
    "log.report=false",
)


def start(world_size: int, arguments: Sequence[str]) -> list[BaseProcess]:
    """One process a rank, running `train.py arguments`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes: list[BaseProcess] = []
    for rank in range(world_size):
        process = _fork.Process(target=_one_rank, args=(rank, world_size, port, list(arguments)))
        process.start()
        processes.append(process)
    return processes


def _one_rank(rank: int, world_size: int, port: int, arguments: list[str]) -> None:
    os.setsid()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    os._exit(end(train.run, arguments))


def finish(processes: Sequence[BaseProcess], timeout_s: float = 120) -> list[int | None]:
    """The exit codes; None for a process that had to be killed, like torchrun does: two seconds
    after another one failed, or after `timeout_s`."""
    limit = time.monotonic() + timeout_s
    while any(process.is_alive() for process in processes) and time.monotonic() < limit:
        if any(process.exitcode for process in processes):
            limit = min(limit, time.monotonic() + 2)
        time.sleep(0.01)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    return [None if process in late else process.exitcode for process in processes]


def run(world_size: int, *arguments: str) -> None:
    """A run to its end, on `world_size` ranks; every rank must return 0."""
    assert finish(start(world_size, arguments)) == [0] * world_size


def kill_at(world_size: int, folder: Path, step: int, *arguments: str) -> None:
    """Start a run in `folder` and kill -9 every rank as soon as the row of `step` is there."""
    processes = start(world_size, arguments)
    rows = folder / "metrics.jsonl"
    limit = time.monotonic() + 60
    while not (rows.is_file() and rows.read_bytes().count(b"\n") >= step):
        assert time.monotonic() < limit, "the run never reached the step"
        assert all(process.is_alive() for process in processes), "the run ended before the kill"
        time.sleep(0.002)
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    assert finish(processes) == [-signal.SIGKILL] * world_size


def outcome(folder: Path) -> dict[str, Any]:
    """What a run left that must be the same bits in every repeat: weights, optimizer, rows."""
    content = read(folder / "last.pt")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["clock"]
    kept = ("model", "residual", "ema", "ema_residual", "optimizer", "scaler", "cursor")
    return {"rows": rows, **{key: content[key] for key in kept if key in content}}


def assert_same_bits(one: Any, other: Any, where: str = "") -> None:
    """Compare two outcomes; tensors by type, shape and every bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same_bits(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same_bits(*pair, f"{where}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        same = one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
        assert same, f"{where} differs in some bits"
    else:
        assert one == other, where
