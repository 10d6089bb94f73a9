"""A run that is killed again and again, and goes on with another number of processes each time.

./launch.sh test tests/test_sizes.py
"""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from checkpoint.publish import step_files
from tests.kills import kill
from tests.runs import QUICK, finish, run, start
from tests.trained import NOTES, Start, sequence, starts

STEPS_AN_EPOCH, EPOCHS, GLOBAL_BATCH = 14, 3, 96
OPTIONS = (
    *QUICK,
    *NOTES,
    "model.name=tests/networks.py:alike_on_any_ranks",
    "save.every_steps=4",
    f"train.epochs={EPOCHS}",
    f"train.global_batch={GLOBAL_BATCH}",
)
RESUMED = ("--resume", "auto", "--config", "configs/quickstart.yaml")


def noting_into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    monkeypatch.setenv("TRAINED", str(folder))
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def newest(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max((step for step, _ in step_files(folder)), default=0) if folder.exists() else 0


def kill_after(size: int, folder: Path, step: int, *arguments: str) -> None:
    """Start a run and kill -9 its ranks at `step`, or when it has saved, whatever comes later."""
    before, metrics, limit = newest(folder), folder / "metrics.jsonl", time.monotonic() + 60
    processes = start(size, arguments)
    while newest(folder) == before or metrics.read_bytes().count(b"\n") < step:
        assert time.monotonic() < limit and all(process.is_alive() for process in processes)
        time.sleep(0.002)
    kill(processes)


def test_four_two_three_and_one_processes_train_on_what_an_unbroken_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = noting_into(tmp_path / "whole", monkeypatch)
    run(4, *OPTIONS, f"run.dir={tmp_path}", "run.name=unbroken")
    expected = sequence(starts(whole))
    assert len(expected) == STEPS_AN_EPOCH * EPOCHS

    broken = (*OPTIONS, f"run.dir={tmp_path}", "run.name=broken")
    folder, parts = tmp_path / "broken", list[Start]()
    for number, (size, step) in enumerate([(4, 7), (2, 18), (3, 32)]):
        notes = noting_into(tmp_path / f"part {number}", monkeypatch)
        (notes / "slow").write_text("0.04")  # so that a kill comes at its step
        kill_after(size, folder, step, *(RESUMED if number else ()), *broken)
        parts += starts(notes)
    assert finish(start(5, [*RESUMED, *broken]))[0] == 2
    said = "".join(capfd.readouterr())
    assert "96 cannot be divided by 5 processes; it can by 1, 2, 3, 4, 6, 8, 12, 16," in said
    notes = noting_into(tmp_path / "last part", monkeypatch)
    run(1, *RESUMED, *broken)
    parts += starts(notes)

    assert [part.size for part in parts] == [4, 2, 3, 1]
    for earlier, later in pairwise(parts):
        assert max(earlier.ranks) >= min(later.ranks) - 1 > 0
    assert any(max(part.ranks) % STEPS_AN_EPOCH for part in parts)
    trained = sequence(parts)
    assert trained == expected
    for epoch in range(EPOCHS):
        steps = trained[STEPS_AN_EPOCH * epoch : STEPS_AN_EPOCH * (epoch + 1)]
        samples = [sample for step in steps for sample in step]
        assert len(samples) == len(set(samples)) == STEPS_AN_EPOCH * GLOBAL_BATCH
    one, other = rows(tmp_path / "unbroken"), rows(folder)
    assert [row["step"] for row in other] == [row["step"] for row in one]
    assert [row["train"]["loss"] for row in other] == pytest.approx(
        [row["train"]["loss"] for row in one], rel=1e-5
    )
