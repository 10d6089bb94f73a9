"""What watching and agreeing to stop cost a step: `train.py` with and without them, in turn.

python -m bench heartbeat [--cycles 15] [--steps 100] [--batch 24]        3 minutes on two cores

Two ranks; a cycle is a block of steps with, two without, one with. Beside the whole difference,
which is small against the noise of a machine: the time inside the calls, and the CPU time of the
threads that watch.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.overhead import harness
from bench.paired import Done, record, spread
from bench.ranks import on_ranks

_WITH = (True, False, False, True)
_WARM_UP = 1  # cycles
Block = dict[str, float]


def run(argv: list[str]) -> None:
    """Measure, print, and record one result."""
    options = argparse.ArgumentParser("bench heartbeat")
    options.add_argument("--cycles", type=int, default=15)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--batch", type=int, default=24)
    given = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for rank in (0, 1):  # as the launcher makes them
            (Path(folder) / "attempt" / str(rank)).mkdir(parents=True)
        how = (folder, given.cycles, given.steps, given.batch)
        ranks = on_ranks(2, _one_rank, *how)
    steps = 2 * given.steps  # of each side in a cycle
    step_s = median(cycle["wall_without"] for cycle in ranks[0]) / steps
    result: dict[str, Any] = {"batch": given.batch, "step_ms": round(step_s * 1e3, 2)}
    print(f"heartbeat, W = 2, {step_s * 1e3:.1f} ms a step")
    for kind in ("calls", "threads"):
        us = [max(rank[i][kind] for rank in ranks) / steps * 1e6 for i in range(given.cycles)]
        result[f"{kind}_us"] = spread(us)
        print(f"  {kind:8} us a step of the slower rank: {result[f'{kind}_us'].told()}")
    both = result["calls_us"].median + result["threads_us"].median
    result["share"] = both / (step_s * 1e6)
    print(f"  both together: {result['share']:.3%} of the step")
    for kind, over_ranks in (("cpu", sum), ("wall", max)):
        result[f"ratio_{kind}"] = spread([
            over_ranks(rank[i][f"{kind}_with"] for rank in ranks)
            / over_ranks(rank[i][f"{kind}_without"] for rank in ranks)
            for i in range(given.cycles)
        ])  # fmt: skip
        print(f"  with / without, {kind}: {result[f'ratio_{kind}'].told()}", flush=True)
    record("heartbeat", result)


def _one_rank(rank: int, folder: str, cycles: int, steps: int, batch: int) -> list[Block]:
    from ddp import watch

    os.environ["TORCHELASTIC_ERROR_FILE"] = f"{folder}/attempt/{rank}/error.json"
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    watch.begin(lambda code, _reason, _final: code)
    sides = Sides(cycles, steps)
    harness(
        sides,
        "configs/quickstart.yaml",
        "model.weights=null",
        "data.augment.pad=0",
        "data.image_size=28",
        f"train.global_batch={2 * batch}",
        f"run.dir={folder}",
    )
    return sides.cycles


class Sides:
    """Switches what is measured on and off, and times both; `step` is called before each step."""

    def __init__(self, cycles: int, steps: int) -> None:
        self._left, self._steps = cycles + _WARM_UP, steps
        self._taken, self._calls_s, self._off_s = 0, 0.0, 0.0
        self._on = True
        self._start = _clocks()
        self._cycle: Block = {}
        self.cycles: list[Block] = []
        self._patch()

    def _patch(self) -> None:
        from ddp import watch
        from ddp.stop import Votes

        vars(watch)["mark"] = self._timed(watch.mark, lambda *_, **__: None)
        at_boundary: Any = self._timed(self._never_off(Votes.at_boundary), lambda v: v.wishes)
        Votes.at_boundary = at_boundary  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
        def switched(*args: Any, **kwargs: Any) -> Any:
            if not self._on:
                return instead(*args, **kwargs)
            start = time.perf_counter()
            result = call(*args, **kwargs)
            self._calls_s += time.perf_counter() - start
            return result

        return switched

    def _never_off(self, at_boundary: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Votes that do not take the time they were switched off for slow steps."""

        def called(votes: Any) -> Any:
            votes._asked_at += self._off_s
            self._off_s = 0.0
            return at_boundary(votes)

        return called

    def step(self) -> None:
        """The program is about to take a step."""
        if self._taken % self._steps == 0:
            if self._taken:
                self._end_block()
            self._on = _WITH[self._taken // self._steps % 4]
            self._start, self._calls_s = _clocks(), 0.0
        self._taken += 1

    def _end_block(self) -> None:
        side = "with" if self._on else "without"
        took = {kind: now - then for (kind, now), then in zip(
            _clocks().items(), self._start.values(), strict=True)}  # fmt: skip
        values = {f"wall_{side}": took["wall"], f"cpu_{side}": took["cpu"]}
        if self._on:
            values |= {"calls": self._calls_s, "threads": took["threads"]}
        else:
            self._off_s += took["wall"]
        for name, value in values.items():
            self._cycle[name] = self._cycle.get(name, 0.0) + value
        if self._taken % (len(_WITH) * self._steps) == 0:
            self.cycles.append(self._cycle)
            self._cycle = {}
            self._left -= 1
            if not self._left:
                del self.cycles[:_WARM_UP]
                raise Done


def _clocks() -> Block:
    """Seconds: wall, CPU of the process, CPU of its threads that watch."""
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name.startswith("watch") and thread.ident is not None
    ]
    watching = sum(time.clock_gettime(clock) for clock in clocks)
    return {"wall": time.perf_counter(), "cpu": time.process_time(), "threads": watching}
