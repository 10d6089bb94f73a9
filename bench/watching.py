"""What it costs a run to be looked at: the report, the evaluation's metrics, rows and pictures.

python -m bench watching [--pairs 2] [--epochs 8] [key=value ...]

First one run of two epochs in this process, in which the calls that watch are timed; then whole
runs on two processes with and without the report, in turn (A B B A), from the launch to the end:
with the defaults eight of configs/fashion_mnist.yaml.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import train
from bench.paired import record, spread
from engine.pace import Pace
from engine.recorder import Recorder
from tasks import classification

_ROOT = Path(__file__).resolve().parent.parent
_WATCHES: list[tuple[Any, str]] = [
    (Recorder, "begin"),
    (Recorder, "row"),
    (Recorder, "evaluation"),
    (Pace, "over_ranks"),
    (classification, "class_sums"),
]


def run(argv: list[str]) -> None:
    """Measure, print, and record one result."""
    options = argparse.ArgumentParser("bench watching")
    options.add_argument("--pairs", type=int, default=2)
    options.add_argument("--epochs", type=int, default=8)
    options.add_argument("--config", default="configs/fashion_mnist.yaml")
    options.add_argument("overrides", nargs="*")
    given = options.parse_args(argv)
    common = ["--config", given.config, *given.overrides]
    with tempfile.TemporaryDirectory(prefix="bench-watching-") as folder:
        common.append(f"run.dir={folder}")
        whole_s, parts_s = _timed_calls([*common, "train.epochs=2", "run.name=calls"])
        print(f"one process, {whole_s:.1f} s; seconds and share of the calls that watch")
        for name, seconds in parts_s.items():
            print(f"  {name:11} {seconds:.3f} s  {seconds / whole_s:.3%}", flush=True)
        sides: dict[str, list[float]] = {"true": [], "false": []}
        for pair in range(given.pairs):
            for turn, side in enumerate(("true", "false", "false", "true")):
                name = f"run.name=run-{pair}-{turn}"
                own = (f"train.epochs={given.epochs}", name, f"log.report={side}")
                sides[side].append(_launched([*common, *own]))
    result: dict[str, Any] = {"config": given.config, "epochs": given.epochs}
    result |= {"calls_s": parts_s, "run_s": whole_s}
    if given.pairs:
        ratio = spread([a / b for a, b in zip(sides["true"], sides["false"], strict=True)])
        for side, times in sides.items():
            print(
                f"  report={side:5} {median(times):.2f} s  {[round(value, 2) for value in times]}"
            )
        print(f"  with / without the report: {ratio.told()}")
        result |= {"runs_s": sides, "ratio": ratio}
    record("watching", result)


def _timed_calls(arguments: list[str]) -> tuple[float, dict[str, float]]:
    """(seconds of the run, seconds in each of the calls that watch) of a run in this process."""
    spent: dict[str, float] = {}
    for owner, name in _WATCHES:
        spent[name] = 0.0
        setattr(owner, name, _timed(getattr(owner, name), spent, name))
    start = time.perf_counter()
    train.run([*arguments, "log.report=false"])
    return time.perf_counter() - start, spent


def _timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        spent[name] += time.perf_counter() - start
        return result

    return call


def _launched(arguments: list[str]) -> float:
    """Seconds of a whole run on two processes, from the launch to the end."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *launcher, "train.py", *arguments],
        cwd=_ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start
