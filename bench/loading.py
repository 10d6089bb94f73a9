"""What it costs four ranks of one host to take in one file of weights: memory and time.

python -m bench loading [--ranks 4] [--layers 30] [--rounds 2]      about a minute a round

Of all ranks together the peak of the proportional set size (shared pages counted once), sampled
every few ms from before there is a model until it is wrapped, and the wall time of that.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.paired import record, spread
from bench.ranks import on_ranks

if TYPE_CHECKING:
    from torch import nn

WIDTH = 2048
WAYS = ("random", "plain", "mmap", "constructor", "ours")


def run(argv: Sequence[str]) -> None:
    """Each way in turn, `--rounds` times; a line for each, and a record."""
    parser = argparse.ArgumentParser(prog="python -m bench loading", description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=30, help="16.8 MB each")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args(argv)
    peaks: dict[str, list[float]] = {way: [] for way in WAYS}
    walls: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        _write(file, given.layers)
        size = file.stat().st_size / 2**20
        for _ in range(given.rounds):
            for way in WAYS:
                peak, wall = _measured(given.ranks, way, file, given.layers)
                peaks[way].append(peak)
                walls[way].append(wall)
    for way in WAYS:
        print(f"{way:12} peak {spread(peaks[way]).told(' MiB')}, {spread(walls[way]).told(' s')}")
    found = {f"{way}_peak_mib": asdict(spread(peaks[way])) for way in WAYS}
    found |= {f"{way}_s": asdict(spread(walls[way])) for way in WAYS}
    record("loading", {"ranks": given.ranks, "file_mib": round(size), **found})


def _write(file: Path, layers: int) -> None:
    import torch

    torch.save(_network(layers).state_dict(), file)


def _network(layers: int) -> nn.Module:
    from torch import nn

    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))


def _measured(ranks: int, way: str, file: Path, layers: int) -> tuple[float, float]:
    """(peak of the summed PSS in MiB, wall seconds) between the ranks' first start and last end."""
    samples: list[tuple[float, float]] = []
    done = threading.Event()
    sampler = threading.Thread(target=_sample, args=(samples, done))
    sampler.start()
    try:
        spans = on_ranks(ranks, _take_in, way, str(file), layers)
    finally:
        done.set()
        sampler.join()
    start, end = min(span[0] for span in spans), max(span[1] for span in spans)
    return max(mib for at, mib in samples if start <= at <= end), end - start


def _sample(samples: list[tuple[float, float]], done: threading.Event) -> None:
    while not done.wait(0.005):
        samples.append((time.monotonic(), sum(map(_pss_mib, _children()))))


def _children() -> list[str]:
    found = Path("/proc/self/task").glob("*/children")
    return [pid for file in found for pid in file.read_text().split()]


def _pss_mib(pid: str) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    (line,) = (line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def _take_in(rank: int, way: str, name: str, layers: int) -> tuple[float, float]:
    """(start, end) on the host's clock of building, filling and wrapping the network one way."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from configs.schema import Ddp
    from ddp.process import join
    from ddp.rank0 import is_rank0, on_rank0
    from ddp.wrap import wrap
    from models.build import build_model
    from models.pretrained import load_pretrained

    join()
    dist.barrier()
    start = time.monotonic()
    if way in ("random", "ours"):
        builder: Callable[[int, int], torch.nn.Module] = lambda *_: _network(layers)  # noqa: E731
        model = build_model(builder, 1, 1, seed=0, initialise=is_rank0() or way == "random")
        if way == "ours":
            on_rank0(load_pretrained, model, Path(name), [])
            wrap(model, Ddp())
        else:
            DistributedDataParallel(model, init_sync=False)
    else:
        model = _network(layers)
        if rank == 0 or way != "constructor":
            state = torch.load(name, weights_only=True, map_location="cpu", mmap=way == "mmap")
            model.load_state_dict(state)
            del state
        DistributedDataParallel(model, init_sync=way == "constructor")
    dist.barrier()
    return start, time.monotonic()
