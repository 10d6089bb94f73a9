"""Fair comparisons: sides take turns inside one process, A B B A, and neighbours are compared.

A machine drifts by a third over minutes, so absolute times say little; the ratio of two blocks that
ran next to each other says a lot. CPU time counts all threads of all ranks.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
Block = Callable[[], object]
Time = tuple[float, float]  # CPU s, wall s
Times = list[Time]  # of each cycle


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles, and the 95 % interval of the median by bootstrap."""

    median: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    count: int

    def told(self, unit: str = "") -> str:
        """`1.003 (0.998-1.011; 95 % 1.000-1.006, n=15)`."""
        (low, high), (least, most) = self.quartiles, self.interval
        return (
            f"{self.median:.4g}{unit} ({low:.4g}-{high:.4g}; "
            f"95 % {least:.4g}-{most:.4g}, n={self.count})"
        )


def spread(values: Sequence[float]) -> Spread:
    """The spread of independent values."""
    given = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(given), (10_000, len(given)))
    medians = np.median(given[drawn], axis=1)
    low, middle, high = (float(q) for q in np.quantile(given, [0.25, 0.5, 0.75]))
    least, most = (float(q) for q in np.quantile(medians, [0.025, 0.975]))
    return Spread(middle, (low, high), (least, most), len(given))


def timed(block: Block) -> Time:
    """(CPU s, wall s) that the block took in this process."""
    start = _clocks()
    block()
    return _since(start)


def take_turns(sides: dict[str, Block], cycles: int, warm_up: int = 2) -> dict[str, Times]:
    """Run all sides in turn, forth and back in each cycle; the times of each side's cycles."""
    for _ in range(warm_up):
        for block in sides.values():
            block()
    times: dict[str, Times] = {name: [] for name in sides}
    there_and_back = [*sides, *reversed(sides)]
    for _ in range(cycles):
        parts = [(name, timed(sides[name])) for name in there_and_back]
        for name in sides:
            times[name].append(_sum(time for side, time in parts if side == name))
    return times


class Done(Exception):
    """All turns are taken."""


class Turns:
    """Lets a bare loop take turns with a whole training program, which calls `step` at each step.

    A cycle is a block of the program, two of the bare loop, one of the program. Ends by `Done`.
    """

    def __init__(
        self,
        bare: Callable[[], Block],
        steps: int,
        cycles: int,
        warm_up: int = 1,
        timed: Callable[[Block], Time] = timed,
    ) -> None:
        """`bare()`, called when the program is at its first step, returns a block of `steps`, of
        which `timed` is the time."""
        self._make, self._steps, self._warm_up, self._timed = bare, steps, warm_up, timed
        self._left = cycles + warm_up
        self._taken = 0
        self._ours: Times = []
        self._bare: Times = []
        self.times: dict[str, Times] = {"ours": [], "bare": []}

    def step(self) -> None:
        """The program is about to take a step."""
        if self._taken == 0:
            self._block = self._make()
            self._block()
        elif self._taken % self._steps == 0:
            self._end_block()
        if self._taken % self._steps == 0:
            self._start = _clocks()
        self._taken += 1

    def _end_block(self) -> None:
        self._ours.append(_since(self._start))
        if len(self._ours) == 1:
            self._bare = [self._timed(self._block) for _ in range(2)]
            return
        self._left -= 1
        if self._warm_up:
            self._warm_up -= 1
        else:
            self.times["ours"].append(_sum(self._ours))
            self.times["bare"].append(_sum(self._bare))
        self._ours = []
        if not self._left:
            raise Done


def _clocks() -> Time:
    return time.process_time(), time.perf_counter()


def _since(start: Time) -> Time:
    cpu, wall = _clocks()
    return cpu - start[0], wall - start[1]


def _sum(parts: Iterable[Time]) -> Time:
    cpu, wall = zip(*parts, strict=True)
    return sum(cpu), sum(wall)


def over_ranks(answers: Sequence[dict[str, Times]]) -> dict[str, Times]:
    """The ranks' times as one: CPU time added up, wall time of the slowest."""
    merged: dict[str, Times] = {}
    for name in answers[0]:
        cycles = zip(*(answer[name] for answer in answers), strict=True)
        merged[name] = [
            (sum(cpu for cpu, _ in ranks), max(wall for _, wall in ranks)) for ranks in cycles
        ]
    return merged


def ratios(times: dict[str, Times], ours: str, base: str) -> dict[str, Spread]:
    """`ours` over `base`, cycle by cycle, in CPU and in wall time."""
    pairs = list(zip(times[ours], times[base], strict=True))
    return {
        kind: spread([mine[place] / theirs[place] for mine, theirs in pairs])
        for place, kind in enumerate(("cpu", "wall"))
    }


def named(ratio: dict[str, Spread]) -> dict[str, Spread]:
    """Ratios as a result holds them, beside `cpu`, the name of the processor."""
    return {f"ratio_{kind}": value for kind, value in ratio.items()}


def record(name: str, values: dict[str, Any]) -> None:
    """Append one result, with versions and hardware, to bench/results/NAME.jsonl."""
    plain = {
        key: asdict(value) if isinstance(value, Spread) else value for key, value in values.items()
    }
    row = {
        "bench": name,
        **plain,
        "when": datetime.now(UTC).isoformat("T", "seconds"),
        **conditions(),
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def conditions() -> dict[str, Any]:
    """Versions and hardware that a figure travels with."""
    packages = ("torch", "torchvision", "numpy", "lightning", "accelerate", "pytorch-ignite")
    return {
        "versions": {"python": platform.python_version()}
        | {n: v for n in packages if (v := _version(n))},
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
