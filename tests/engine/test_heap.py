"""Memory that a step frees is there for the next one.

./launch.sh test tests/engine/test_heap.py
"""

import platform
import resource
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from engine import heap
from engine.heap import kept_memory
from models.build import build_model, find_builder
from tests.ranks import run_ranks


def pages_filled(rank: int, keep: bool) -> int:
    """Pages that the system filled in 5 forward and backward passes, after as many."""
    model = build_model(find_builder("small_resnet"), 10, 1, seed=0, initialise=True)
    images = torch.randn(128, 1, 28, 28)

    def passes() -> None:
        for _ in range(5):
            model(images).sum().backward()

    with kept_memory(torch.device("cpu")) if keep else nullcontext():
        passes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    passes()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_step_gets_the_memory_back_that_the_last_one_freed() -> None:
    [kept] = run_ranks(1, pages_filled, True)
    [returned] = run_ranks(1, pages_filled, False)
    assert kept < returned / 10


def large_pages_kib(rank: int, allowed: str) -> int:
    """Of the heap after a large block was taken and freed."""
    heap._ALLOWED = Path(allowed)
    with kept_memory(torch.device("cpu")):
        torch.ones(2**24)
    on_large = [0]
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith("[heap]")
        elif inside and line.startswith("AnonHugePages:"):
            on_large.append(int(line.split()[1]))
    return sum(on_large)


def test_the_heap_is_on_large_pages_where_the_system_allows_them(tmp_path: Path) -> None:
    kernel = tuple(int(part) for part in platform.release().split(".")[:2])
    if kernel < (6, 1) or "[madvise]" not in heap._ALLOWED.read_text():
        pytest.skip("this system does not put memory on large pages at once when asked")
    assert run_ranks(1, large_pages_kib, str(heap._ALLOWED))[0] > 0
    (tmp_path / "enabled").write_text("always madvise [never]")
    assert run_ranks(1, large_pages_kib, str(tmp_path / "enabled")) == [0]
    assert run_ranks(1, large_pages_kib, str(tmp_path / "absent")) == [0]
