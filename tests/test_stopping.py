"""Signals to any rank, at any point of a run: all ranks save, end with 75, and lose no step.

./launch.sh test tests/test_stopping.py              (every cell: tests/campaigns/stopping.py)
"""

from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR1

import pytest

from tests.stops import Case, stopped_run, unbroken

CASES = [
    Case("step", (1,), (SIGTERM,), 0),
    Case("data", (0, 1), (SIGINT,), 2, whole=True),
    Case("evaluation", (0,), (SIGUSR1,), 0),
    Case("save", (0, 1), (SIGTERM, SIGTERM), 2, whole=True),
]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unbroken(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_signal_stops_all_ranks_after_the_same_step_and_none_is_lost(
    case: Case, tmp_path: Path, whole_run: Path
) -> None:
    stopped_run(case, tmp_path, whole_run)
