"""What a step frees is not given back to the system, and taken anew, at every step.

./launch.sh test tests/engine/test_heap.py
"""

import resource
import subprocess
import sys
from pathlib import Path

import torch

from engine.heap import keep_freed_memory
from models.build import build_model, find_builder

ROOT = Path(__file__).resolve().parents[2]


def pages_filled() -> None:
    """Print the pages that the system fills in 5 forward and backward passes, without and with."""
    model = build_model(find_builder("small_resnet"), 10, 1, seed=0, initialise=True)
    images = torch.randn(128, 1, 28, 28)
    torch.set_num_threads(1)
    for keep in (False, True):
        if keep:
            keep_freed_memory(torch.device("cpu"))
        before = 0
        for step in range(10):
            model(images).sum().backward()
            if step == 4:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def test_a_step_gets_the_memory_back_that_the_last_one_freed() -> None:
    # A process of its own: what is set here stays, and a forked one inherits it.
    script = "from tests.engine.test_heap import pages_filled; pages_filled()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 10
