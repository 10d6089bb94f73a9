"""Ranks that were not started alike are told before the first step, by fact and rank.

./launch.sh test tests/ddp/test_agree.py
"""

import os
import time

import pytest

from ddp.agree import require_same
from ddp.wrap import Disagreement
from tests.ranks import run_ranks

FACTS = {
    "arguments": ["--config", "x.yaml"],
    "configuration": {"optim": {"lr": 0.1, "name": "sgd"}, "seed": 0},
    "code": "0123456789ab",
    "training samples": 1437,
}
OTHERS = {
    "arguments": (["--config", "y.yaml"], "arguments ['--config', 'y.yaml'], not"),
    "configuration": ({"optim": {"lr": 0.2, "name": "sgd"}, "seed": 0}, "optim.lr 0.2, not 0.1"),
    "code": ("ba9876543210", "code ba9876543210, not 0123456789ab"),
    "training samples": (1436, "training samples 1436, not 1437"),
}


def told(rank: int, name: str, value: object) -> tuple[str, float]:
    begun = time.monotonic()
    try:
        require_same(FACTS | ({name: value} if rank == 2 else {}))
    except Disagreement as error:
        return str(error), time.monotonic() - begun
    return "", 0.0


@pytest.mark.parametrize("name", OTHERS)
def test_every_rank_is_told_what_differs_and_where(name: str) -> None:
    value, expected = OTHERS[name]
    for text, seconds in run_ranks(3, told, name, value):
        assert f"rank 2: {expected}" in text
        assert "rank 1:" not in text
        assert seconds < 10


def ends_with(rank: int) -> int:
    os.environ["LOCKSTEP_START"] = "7"
    try:
        require_same(FACTS | ({"code": "ba9876543210"} if rank == 2 else {}))
    except Disagreement as error:
        return error.exit_code
    return 0


def test_of_an_elastic_job_only_the_ranks_that_differ_are_turned_away() -> None:
    assert run_ranks(3, ends_with) == [75, 75, 2]


def test_equal_facts_pass() -> None:
    assert run_ranks(3, told, "code", FACTS["code"]) == [("", 0.0)] * 3
