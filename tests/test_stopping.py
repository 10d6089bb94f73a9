"""Signals to any rank, at any point of a run: all ranks save, end with 75, and lose no step.

./launch.sh test tests/test_stopping.py
"""

import json
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from checkpoint.open import read
from tests.faults import Fault, meet
from tests.runs import QUICK, assert_same_bits, outcome, run

OPTIONS = ("save.every_steps=null", "train.eval_batch=8", "train.epochs=8")


class Case(NamedTuple):
    phase: str
    told: tuple[int, ...]
    signals: tuple[int, ...]
    workers: int


CASES = {
    "SIGTERM to one rank in a step": Case("step", (1,), (signal.SIGTERM,), 0),
    "SIGINT to all and their workers in the data": Case("data", (0, 1), (signal.SIGINT,), 2),
    "SIGUSR1 to rank 0 in an evaluation": Case("evaluation", (0,), (signal.SIGUSR1,), 0),
    "SIGTERM twice to all, their workers and the writer in a save": Case(
        "save", (0, 1), (signal.SIGTERM, signal.SIGTERM), 2
    ),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(2, *QUICK, *OPTIONS, f"run.dir={folder}", "run.name=run")
    return folder / "run"


@pytest.mark.parametrize("name", CASES)
def test_a_signal_stops_all_ranks_after_the_same_step_and_none_is_lost(
    name: str, tmp_path: Path, unbroken: Path
) -> None:
    case = CASES[name]
    options = (*OPTIONS, "run.name=run", f"data.workers={case.workers}")
    times = {"evaluation": 2, "save": 1}.get(case.phase, 6)
    fault = Fault("pause", case.told[0], case.phase, times)
    ended = meet(fault, 2, tmp_path, *options, signals=case.signals, told=case.told)
    assert ended.codes == [75, 75], ended.said
    assert ended.seconds < 30
    assert ended.left == []
    assert "Traceback" not in ended.said
    assert (tmp_path / "run" / "exit").read_text().startswith("75 stopped by SIG")

    stopped = read(tmp_path / "run" / "last.pt")["cursor"]
    rows = [
        json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    # The row of an evaluation that was cut short is written when it is done.
    done = rows[-1]["step"] + stopped["owes_evaluation"]
    assert stopped["step"] == done < 112
    assert stopped["owes_evaluation"] or case.phase != "evaluation"

    again = ("--resume", "auto", "--config", "configs/quickstart.yaml")
    run(2, *again, *QUICK, *options, f"run.dir={tmp_path}")
    assert_same_bits(outcome(unbroken), outcome(tmp_path / "run"))
