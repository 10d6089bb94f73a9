"""What watching and voting cost a rank of two, in steps of 20 ms: time inside the calls, and CPU.

python -m tests.campaigns.overhead          about 25 s
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from ddp import watch
from ddp.stop import Votes
from tests.ranks import run_ranks

STEP_S, STEPS, PAIRS = 0.02, 200, 3
WARM_UP = 30  # until as many steps as usual lie between two questions


def steps(votes: Votes | None) -> tuple[float, float]:
    """(seconds inside the calls, CPU seconds of the process) a step."""
    inside, cpu = 0.0, time.process_time()
    for step in range(-WARM_UP, STEPS):
        if step == 0:
            inside, cpu = 0.0, time.process_time()
        time.sleep(STEP_S)
        if votes is not None:
            begun = time.perf_counter()
            watch.mark("data")
            watch.mark("step")
            watch.mark(step=step)
            votes.at_boundary()
            inside += time.perf_counter() - begun
    return inside / STEPS, (time.process_time() - cpu) / STEPS


def measured(rank: int, folder: str) -> list[tuple[float, float]]:
    os.environ["TORCHELASTIC_ERROR_FILE"] = f"{folder}/attempt/{rank}/error.json"
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    watch.begin(lambda code, _: code)
    votes = Votes()
    pairs = []
    for _ in range(PAIRS):
        _, without = steps(None)
        inside, with_it = steps(votes)
        pairs.append((inside, with_it - without))
    votes.close()
    return pairs


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "attempt").mkdir()
        for rank, pairs in enumerate(run_ranks(2, measured, place)):
            inside, cpu = (median(one[i] for one in pairs) for i in range(2))
            print(
                f"rank {rank}: {inside * 1e6:.0f} us a step inside the calls, "
                f"{inside / STEP_S:.3%} of it; {cpu * 1e6:.0f} us more CPU"
            )
