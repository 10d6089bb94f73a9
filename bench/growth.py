"""One rank of a large job: what each phase of a run takes at W = 8, 1,024 and 65,536.

python -m bench growth        two minutes

`train.py --rehearse W` runs as rank 0, which does all that any rank does, and is then evaluated:
the other ranks are its twins, and there is no wire; shown is what a rank does and holds for each of
the others. Four images a rank at every size.
"""

import argparse
import io
import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from bench.paired import record, spread
from bench.ranks import on_ranks

SIZES = (8, 1024, 65536)
STEPS, A_RANK = 40, 4
PHASES = (
    "require_same",
    "receive",
    "network",
    "wrap",
    "agreement",
    "receive_optimizer_state",
    "warm_up",
    "processes",
    "train_step",
    "evaluate",
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
    import train
    from engine import rehearsal

    vars(rehearsal)["STEPS"] = STEPS
    spent = {name: _timed_everywhere(name) for name in PHASES}
    before = _memory("VmRSS")
    with redirect_stdout(io.StringIO()):
        train.run(
            [
                *("--rehearse", str(world_size)),
                "model.weights=null",
                "data.name=bench/networks.py:grey",
                "data.image_size=null",
                f"train.global_batch={A_RANK * world_size}",
            ]
        )
    _evaluated(world_size)
    grown = (_memory("VmHWM") - before) / 2**20
    told = {
        f"{name}, CPU ms": 1e3 * sorted(times)[len(times) // 2] for name, times in spent.items()
    }
    return told | {"memory, MiB": grown}


def _evaluated(world_size: int) -> None:
    """Score half a batch of wrong predictions; where the others' are as bad, all are compared."""
    import torch

    from ddp.process import rehearse
    from engine import evaluate
    from tasks.classification import Classification

    rehearse(0, world_size)
    label = torch.arange(64) % 10
    batch = {"image": torch.eye(10)[label.roll(1)], "label": label, "sample": torch.arange(64)}
    task = Classification([str(digit) for digit in range(10)])
    evaluate.evaluate(torch.nn.Identity(), task, [batch], nullcontext())


def _timed_everywhere(name: str) -> list[float]:
    """The CPU seconds of each call, from now on, of the one function `name` of the project."""
    spent: list[float] = []
    for module in list(sys.modules.values()):
        function = vars(module).get(name)
        where = getattr(function, "__module__", "").partition(".")[0]
        if callable(function) and where in ("train", "ddp", "engine"):
            vars(module)[name] = _timed(function, spent)
    return spent


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **options)
        finally:
            spent.append(time.process_time() - start)

    return timed


def _memory(what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024.0
