"""What must hold after a signal: saved and told, nothing left, and no step lost."""

import json
import signal
from pathlib import Path
from typing import NamedTuple

from checkpoint.open import read
from tests.faults import Fault, meet
from tests.runs import QUICK, assert_same_bits, outcome, run

EPOCHS, STEPS = 8, 8 * 14
OPTIONS = ("save.every_steps=null", "train.eval_batch=8", "run.name=run")
MOST_S = 30.0


class Case(NamedTuple):
    """Signals to some ranks while the first of them is in a phase."""

    phase: str
    told: tuple[int, ...]
    signals: tuple[int, ...]
    workers: int
    whole: bool = False  # their workers and writer as well

    def __str__(self) -> str:
        names = ", ".join(signal.Signals(number).name for number in self.signals)
        whom = " and ".join(f"rank {rank}" for rank in self.told)
        whom += ", their workers and writer" if self.whole else ""
        return f"{names} to {whom} in {self.phase}, {self.workers} workers"


def unbroken(folder: Path, *options: str) -> Path:
    """The run folder of a run in `folder` that nobody stops."""
    run(2, *QUICK, *OPTIONS, f"train.epochs={EPOCHS}", f"run.dir={folder}", *options)
    return folder / "run"


def stopped_run(case: Case, folder: Path, whole_run: Path) -> float:
    """Seconds from the signal to the end; AssertionError when a run in `folder` that is stopped and
    gone on with is not `whole_run`."""
    options = (*OPTIONS, f"train.epochs={EPOCHS}", f"data.workers={case.workers}")
    times = {"evaluation": 2, "save": 1}.get(case.phase, 6)
    fault = Fault("pause", case.told[0], case.phase, times)
    ended = meet(fault, 2, folder, *options, signals=case.signals, told=case.told, whole=case.whole)
    assert ended.codes == [75, 75], ended.said
    assert ended.seconds < MOST_S
    assert ended.left == []
    assert "Traceback" not in ended.said
    owed = assert_saved(folder / "run", STEPS)
    assert owed or case.phase != "evaluation"
    go_on(folder, whole_run, *options)
    return ended.seconds


def assert_saved(path: Path, steps: int) -> bool:
    """The checkpoint is of the last step that the rows tell of, and not of the last of the run.
    Returns whether it owes the evaluation of its step."""
    assert (path / "exit").read_text().startswith("75 stopped by SIG")
    cursor = read(path / "last.pt")["cursor"]
    rows = [json.loads(row) for row in (path / "metrics.jsonl").read_text().splitlines()]
    # The row of an evaluation that was cut short is written when it is done.
    done = rows[-1]["step"] + cursor["owes_evaluation"]
    assert cursor["step"] == done < steps
    return bool(cursor["owes_evaluation"])


def go_on(folder: Path, whole_run: Path, *options: str) -> None:
    """Resume the run in `folder` to its end, which must be `whole_run`'s, bit for bit."""
    again = ("--resume", "auto", "--config", "configs/quickstart.yaml")
    run(2, *again, *QUICK, *options, f"run.dir={folder}")
    assert_same_bits(outcome(whole_run), outcome(folder / "run"))
