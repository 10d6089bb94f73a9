"""Kill a whole job with SIGKILL at random instants, half of them inside a save; go on; compare.

python -m tests.kills [--trials 200] [--seed 0]     the campaign; tests/test_kills.py runs a few
"""

import argparse
import os
import random
import signal
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from checkpoint.publish import step_files
from tests.runs import QUICK, assert_same_bits, finish, outcome, run, start

OPTIONS = (*QUICK, "save.every_steps=3", "train.ema=0.9", "optim.name=adamw")
RESUMED = ("--resume", "auto", "--config", "configs/quickstart.yaml")


class Campaign:
    """Trials in one folder; the unbroken run of each world size is made once."""

    def __init__(self, folder: Path, seed: int, epochs: int) -> None:
        self.folder = folder
        self.options = (*OPTIONS, f"run.dir={folder}", f"train.epochs={epochs}")
        self.chance = random.Random(seed)
        self.expected: dict[int, dict[str, Any]] = {}
        self.seconds: dict[int, float] = {}
        self.inside = self.outside = 0  # kills that were, or were not, inside a save

    def trial(self, number: int, world_size: int) -> None:
        """One job killed and resumed; AssertionError when it does not end as the unbroken one."""
        if world_size not in self.expected:
            self._unbroken(world_size)
        name = f"{number}-on-{world_size}"
        arguments = (*self.options, f"run.name={name}")
        path = self.folder / name
        processes = start(world_size, arguments)
        if number % 2:
            self._await_a_save(path, processes)
        else:
            # Not before there is anything to go on from, nor after the end.
            time.sleep(self.chance.uniform(0.3, 0.9) * self.seconds[world_size])
        inside = bool(list(path.glob(".step-*.tmp"))) if path.exists() else False
        kill(processes)
        self.inside += inside
        self.outside += not inside
        run(world_size, *RESUMED, *arguments)
        assert_same_bits(outcome(path), self.expected[world_size], f"trial {number}")
        left = [file.name for file in path.rglob("*.tmp")]
        assert left == [], f"trial {number} left {left}"
        assert len(step_files(path)) >= 2

    def _unbroken(self, world_size: int) -> None:
        begin = time.monotonic()
        name = f"unbroken-{world_size}"
        run(world_size, *self.options, f"run.name={name}")
        self.seconds[world_size] = time.monotonic() - begin
        self.expected[world_size] = outcome(self.folder / name)

    def _await_a_save(self, path: Path, processes: list[BaseProcess]) -> None:
        """Until some save, not always the first, has been going on for a moment."""
        passed = 0
        skipped = self.chance.randrange(6)
        seen: set[str] = set()
        while passed <= skipped and all(process.is_alive() for process in processes):
            found = {file.name for file in path.glob(".step-*.tmp")} - seen
            seen |= found
            passed += len(found)
        time.sleep(self.chance.uniform(0, 0.01))


def kill(processes: list[BaseProcess]) -> None:
    """End every rank with SIGKILL; the kernel ends rank 0's writer with it."""
    for process in processes:
        assert process.pid is not None
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    finish(processes)


def main() -> None:
    options = argparse.ArgumentParser("python -m tests.kills")
    options.add_argument("--trials", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), given.seed, epochs=2)
        for number in range(given.trials):
            campaign.trial(number, 2 + number % 4 // 2)
            print(
                f"{number + 1} of {given.trials} equal, {campaign.inside} inside a save", flush=True
            )


if __name__ == "__main__":
    main()
