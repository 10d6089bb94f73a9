"""What a resumed run may change, and what is another run.

./launch.sh test tests/test_changed.py
"""

import json
from pathlib import Path

import pytest

from engine.cursor import Cursor, resumed
from tests.runs import QUICK, finish, run, start
from utils.errors import BadInput


def test_another_global_batch_is_another_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(2, *QUICK, f"run.dir={tmp_path}", "run.name=x", "train.epochs=1")
    before = (tmp_path / "x" / "metrics.jsonl").read_bytes()
    again = ["--resume", str(tmp_path / "x" / "last.pt"), "train.epochs=2"]
    assert finish(start(2, [*again, "train.global_batch=48"]))[0] == 2
    assert "train.global_batch was 96 and is 48" in "".join(capfd.readouterr())
    assert (tmp_path / "x" / "metrics.jsonl").read_bytes() == before


def test_epochs_of_another_length_are_refused() -> None:
    saved = Cursor(epoch=1, step=14, samples=1344, steps_per_epoch=14).to_plain()
    assert resumed(saved, 14).step == 14
    with pytest.raises(BadInput, match="have 14 steps, this run's have 15"):
        resumed(saved, 15)


def test_what_is_not_a_number_is_never_the_best() -> None:
    cursor = Cursor()
    assert not cursor.improve(None, higher_is_better=True)
    assert cursor.improve(0.5, higher_is_better=True)
    assert not cursor.improve(None, higher_is_better=True)
    assert not cursor.improve(0.5, higher_is_better=True)
    assert cursor.improve(0.6, higher_is_better=True)


def test_a_finished_run_that_lost_its_exit_file_is_finished_again(tmp_path: Path) -> None:
    options = (*QUICK, f"run.dir={tmp_path}", "run.name=x", "train.epochs=1")
    run(1, *options)
    (tmp_path / "x" / "exit").unlink()
    run(1, "--resume", "auto", "--config", "configs/quickstart.yaml", *options)
    assert (tmp_path / "x" / "exit").read_text() == "0 finished\n"
    rows = (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 15))
