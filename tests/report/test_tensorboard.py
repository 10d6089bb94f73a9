"""TensorBoard's own reader finds what metrics.jsonl says."""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Log
from engine import recorder
from report.read import Row, read_run
from utils.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def events(finished: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(finished / "tensorboard"))
        found.Reload()
    return found


def test_every_number_of_the_rows_is_a_scalar_of_its_step(finished: Path, events: Any) -> None:
    rows: list[Row] = read_run(finished).rows
    tags = {
        f"{part}/{name}"
        for row in rows
        for part in ("train", "eval", "clock")
        for name in row.get(part, {})
    } - {"clock/time"}
    assert {"train/loss", "train/lr", "eval/accuracy", "eval/macro_f1"} <= tags
    assert {"clock/images_per_s", "clock/data_wait"} <= tags
    assert set(events.Tags()["scalars"]) == tags
    for tag in tags:
        part, name = tag.split("/")
        expected = [(row["step"], row[part][name]) for row in rows if name in row.get(part, {})]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in expected], tag
        assert [value for _, value in found] == pytest.approx([v for _, v in expected]), tag


def test_confusion_matrix_and_samples_are_images(events: Any) -> None:
    assert set(events.Tags()["images"]) >= {"eval/confusion"}
    assert any(tag.startswith("train/samples") for tag in events.Tags()["images"])
    assert [image.step for image in events.Images("eval/confusion")] == [14, 28, 42]


def test_tensorboard_that_is_not_installed_is_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "find_spec", lambda name: None)
    recorder.require_board(Log())
    with pytest.raises(BadInput, match="pip install tensorboard"):
        recorder.require_board(Log(tensorboard=True))
    assert importlib.util.find_spec("tensorboard")


def test_nothing_of_it_is_imported_by_a_run_that_does_not_ask() -> None:
    unwanted = ("tensorboard", "matplotlib", "jinja2", "torchmetrics", "onnx", "torch.utils.flop")
    command = f"import sys, train; print([m for m in sys.modules if m.startswith({unwanted})])"
    answer = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
