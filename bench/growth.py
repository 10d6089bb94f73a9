"""One rank of a large job: what each phase of a run takes at W = 8, 1,024 and 65,536.

python -m bench growth        two minutes

`train.py` runs as rank 0, which does all that any rank does, under torch's `fake` process group:
what the other ranks would have sent is this rank's own. Sums come out wrong, and there is no wire;
shown is what a rank does and holds for each of the others. Four images a rank at every size.
`processes` is rank 0's list of who runs where, which has a line for each rank.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.paired import Done, record, spread
from bench.ranks import on_ranks

SIZES = (8, 1024, 65536)
STEPS, A_RANK = 40, 4
PHASES = (
    "receive",
    "network",
    "wrap",
    "agreement",
    "receive_optimizer_state",
    "warm_up",
    "processes",
    "train_step",
)


def run(argv: list[str]) -> None:
    """Measure in fresh processes, in turn; record and print."""
    options = argparse.ArgumentParser("bench growth")
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args(argv).rounds
    found: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            found[size] += on_ranks(1, _phases, size)
    for name in found[SIZES[0]][0]:
        spreads = {size: spread([row[name] for row in found[size]]) for size in SIZES}
        most = max(value.median for value in spreads.values()) / spreads[SIZES[0]].median
        record("growth", {"phase": name, "most": most, **{str(s): v for s, v in spreads.items()}})
        told = ", ".join(f"{size:,}: {value.median:.4g}" for size, value in spreads.items())
        print(f"  {name:34} {told}   x {most:.2f} at most", flush=True)


def _phases(_: int, world_size: int) -> dict[str, float]:
    """CPU ms of each phase, and MiB that the process has grown by at its peak."""
    import torch
    import torch.distributed as dist

    import train
    from bench.overhead import harness
    from bench.paired import Turns
    from ddp.process import Place

    names = vars(train)
    spent: dict[str, list[float]] = {}

    def joined(*_args: Any, **_options: Any) -> Place:
        dist.init_process_group("fake", rank=0, world_size=world_size)
        return Place(0, 0, world_size, torch.device("cpu"))

    names["join"] = joined
    names["wrap"] = _with_own_buckets(names["wrap"])
    for name in PHASES:
        names[name] = _timed(names[name], spent.setdefault(name, []))

    class Steps(Turns):
        def step(self) -> None:
            self._taken += 1
            if self._taken > STEPS:
                raise Done

    before = _memory("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        harness(
            Steps(lambda: lambda: None, STEPS, 1),
            "configs/quickstart.yaml",
            "model.weights=null",
            "data.name=bench/networks.py:grey",
            "data.image_size=null",
            f"train.global_batch={A_RANK * world_size}",
            f"run.dir={folder}",
        )
    grown = (_memory("VmHWM") - before) / 2**20
    told = {f"{name}, CPU ms": 1e3 * times[0] for name, times in spent.items()}
    told["train_step, CPU ms"] = 1e3 * sorted(spent["train_step"])[STEPS // 2]
    return told | {"memory, MiB": grown}


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **options)
        finally:
            spent.append(time.process_time() - start)

    return timed


def _with_own_buckets(wrap: Callable[..., Any]) -> Callable[..., Any]:
    """`wrap` whose DDP takes its own buckets for the sum: a fake sum has no result to wait for."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import GradBucket

    def own_bucket(_state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        dist.all_reduce(bucket.buffer())
        result: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        result.set_result(bucket.buffer())
        return result

    def wrapped(*args: Any, **options: Any) -> Any:
        ddp_model = wrap(*args, **options)
        ddp_model.register_comm_hook(None, own_bucket)
        return ddp_model

    return wrapped


def _memory(what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024.0
