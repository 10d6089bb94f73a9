"""What a step frees is not given back to the system, and taken anew, at every step.

./launch.sh test tests/engine/test_heap.py
"""

import resource

import torch

from engine.heap import keep_freed_memory
from models.build import build_model, find_builder
from tests.ranks import run_ranks


def pages_filled(rank: int, keep: bool) -> int:
    """Pages that the system filled in 5 forward and backward passes, after as many."""
    model = build_model(find_builder("small_resnet"), 10, 1, seed=0, initialise=True)
    images = torch.randn(128, 1, 28, 28)
    if keep:
        keep_freed_memory(torch.device("cpu"))
    before = 0
    for step in range(10):
        model(images).sum().backward()
        if step == 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_step_gets_the_memory_back_that_the_last_one_freed() -> None:
    [returned] = run_ranks(1, pages_filled, False)
    [kept] = run_ranks(1, pages_filled, True)
    assert kept < returned / 10
