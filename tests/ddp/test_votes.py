"""Questions to all ranks: the same answer at the same step, and few of them where steps are fast.

./launch.sh test tests/ddp/test_votes.py
"""

import signal
import time

import pytest
import torch.distributed as dist

from ddp.stop import MOST_BOUNDARIES, Votes
from tests.ranks import run_ranks


def steps_until_told(rank: int, step_s: float, asks_at: int) -> tuple[int, int]:
    """(step at which all are told what the last rank asked for, questions until then)."""
    asked = 0
    all_reduce = dist.all_reduce

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal asked
        asked += 1
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    votes = Votes()
    for step in range(1, 10_000):
        time.sleep(step_s * (1 + rank))  # ranks of unequal speed propose unequal intervals
        if step == asks_at and rank == dist.get_world_size() - 1:
            votes.ask_to_save()
        if votes.at_boundary().save:
            break
    votes.close()
    return step, asked


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_are_told_at_the_same_step(world_size: int) -> None:
    (first, *others) = run_ranks(world_size, steps_until_told, 0.0, 300)
    assert all(other == first for other in others)
    step, questions = first
    assert 300 < step <= 300 + 2 * MOST_BOUNDARIES
    assert questions < step / 10


def test_slow_steps_are_told_after_two() -> None:
    for step, _ in run_ranks(2, steps_until_told, 0.3, 3):
        assert step <= 3 + 2


def items_until_stopped(rank: int, asks_at: int | None) -> tuple[int, int]:
    """(items that this rank went through, the signal it was told); rank 1 has one item more."""
    votes = Votes(every_s=0.0)
    seen = 0
    for number in votes.between((n for n in range(20 + rank)), common=20):
        seen += 1
        if number == asks_at and rank == 1:
            votes._on_signal(signal.SIGTERM, None)
    votes.close()
    return seen, votes.wishes.signal


def test_an_evaluation_is_cut_short_on_all_ranks_alike() -> None:
    (first, told), *others = run_ranks(2, items_until_stopped, 5)
    assert others == [(first, told)]
    assert told == signal.SIGTERM
    assert 6 < first < 10


def test_ranks_with_unequal_numbers_of_items_reach_their_ends_together() -> None:
    assert run_ranks(2, items_until_stopped, None) == [(20, 0), (21, 0)]


def items_of_unequal_ranks(rank: int) -> int:
    votes = Votes(every_s=0.0)
    return len(list(votes.between((n for n in range(20 - 3 * rank)), common=20)))


def test_a_rank_with_fewer_items_than_boundaries_makes_them_up() -> None:
    assert run_ranks(2, items_of_unequal_ranks) == [20, 17]
