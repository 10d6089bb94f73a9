"""The order of samples: computed by us, stored by torch's DistributedSampler.

python -m bench order        20 seconds
"""

import argparse
import gc
import re
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.paired import record, spread
from bench.ranks import on_ranks

RANK, RANKS, BATCH = 1, 8, 256
LARGE = 10**9
BESIDE = 10**7  # the size at which both run
SIZES = (10**9, 10**9 + 7, 2**30 - 1, 2**30, 2**30 + 1, 31623**2 + 1, 10**12, 2**40 + 1)
_MIB = 2**20


def run(argv: list[str]) -> None:
    """Measure, record, and say all of it in the last line."""
    options = argparse.ArgumentParser("bench order")
    options.add_argument("--rounds", type=int, default=7)
    rounds = options.parse_args(argv).rounds
    fresh: dict[str, list[tuple[float, float]]] = {"large": [], "ours": [], "theirs": []}
    for _ in range(rounds):  # in fresh processes, in turn
        for name, size, first in (
            ("large", LARGE, _ours),
            ("ours", BESIDE, _ours),
            ("theirs", BESIDE, _theirs),
        ):
            fresh[name] += on_ranks(1, _cost, first, size)
    per_index = {size: on_ranks(1, _ns_per_index, size, rounds)[0] for size in SIZES}
    typical, worst = spread(per_index[LARGE]), spread(max(per_index.values(), key=np.median))
    result: dict[str, Any] = {
        f"{name}_{what}": spread([row[place] * factor for row in rows])
        for name, rows in fresh.items()
        for place, what, factor in ((0, "first_batch_ms", 1e3), (1, "growth_mib", 1 / _MIB))
    }
    pairs = list(zip(fresh["theirs"], fresh["ours"], strict=True))
    result["sooner"] = spread([theirs[0] / ours[0] for theirs, ours in pairs])
    result["less_memory"] = spread([theirs[1] / max(4096, ours[1]) for theirs, ours in pairs])
    record("order", {**result, "ns_an_index": typical, "worst_ns_an_index": worst})
    for name, value in result.items():
        print(f"  {name}: {value.told()}")
    print(
        f"order: at N = 1e9 the first batch after {result['large_first_batch_ms'].median:.2f} ms, "
        f"+{result['large_growth_mib'].median:.1f} MiB, {typical.median:.0f} ns an index "
        f"({worst.median:.0f} at the worst N); at N = 1e7 "
        f"{result['sooner'].median:,.0f} x sooner and {result['less_memory'].median:,.0f} x less "
        "memory than DistributedSampler"
    )


def _ours(size: int) -> int:
    """The first sample of this rank's first batch."""
    from data.order import TrainOrder

    _, samples = TrainOrder(size, RANKS * BATCH, seed=0).samples(0, RANK, RANKS)
    return int(samples[0])


class _Sized:
    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def _theirs(size: int) -> int:
    from torch.utils.data import DistributedSampler

    sampler: Any = DistributedSampler(_Sized(size), RANKS, RANK)  # type: ignore[arg-type]
    sampler.set_epoch(1)
    batch = list(islice(sampler, BATCH))
    return int(batch[0])


def _cost(rank: int, first: Callable[[int], int], size: int) -> tuple[float, float]:
    """(s, bytes) that the first batch takes, and the process grows by at its peak."""
    first(10_000)  # imports, and the first touch of numpy and torch
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    start = time.perf_counter()
    first(size)
    return time.perf_counter() - start, _memory("VmHWM") - before


def _memory(what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024.0


def _ns_per_index(rank: int, size: int, rounds: int) -> list[float]:
    """CPU ns an index, of a million in one call."""
    from data.order import Permutation

    permutation = Permutation(size, 0)
    positions = np.random.default_rng(0).integers(0, size, 10**6)
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        permutation(positions)
        times.append((time.process_time() - start) * 1e9 / len(positions))
    return times[1:]
