"""What a run leaves for people: rows, starts, evaluations, samples, a report."""

import json
import logging
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import Log
from data.loader import Source
from data.memory import MemoryImages
from data.pictures import as_seen, pictures
from engine.recorder import Recorder
from report.read import elapsed_s, read_run, resumed_steps


def test_the_report_is_there_when_the_run_ends(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "finished" in page
    assert "3 of 3" in page
    assert (finished / "logs" / "report.log").read_text() == ""


def test_evaluation_holds_the_integers_that_the_metrics_come_from(finished: Path) -> None:
    run = read_run(finished)
    last = run.rows[-1]
    evaluation = run.evaluation
    assert evaluation["step"] == last["step"] == 42
    confusion = evaluation["confusion"]
    assert confusion.sum() == evaluation["images"] == 359
    assert confusion.diagonal().sum() / confusion.sum() == last["eval"]["accuracy"]
    assert evaluation["classes"].tolist() == [str(digit) for digit in range(10)]
    wrong = confusion.sum() - confusion.diagonal().sum()
    rows = evaluation["worst_mistakes"]
    mistakes = rows[rows[:, 1] >= 0]
    assert len(mistakes) == min(32, wrong) > 0
    assert sorted(mistakes[:, 1]) == evaluation["picture_samples"].tolist()
    assert evaluation["pictures"].shape == (len(mistakes), 8, 8, 1)


def test_a_start_says_who_ran_where_and_from_what(finished: Path) -> None:
    first, second = read_run(finished).starts
    assert (first["step"], second["step"]) == (0, 28)
    assert second["checkpoint"].endswith("last.pt")
    here = {"host": socket.gethostname(), "first": 0, "last": 1, "device": "cpu"}
    assert first["processes"] == {"count": 2, "hosts": 1, "listed": [here]}
    for rank in range(2):
        lines = (finished / "logs" / f"rank-{rank}.log").read_text().splitlines()
        told = [
            line for line in lines if f"rank {rank}: host {socket.gethostname()}, process" in line
        ]
        assert (len(told), told[0]) == (2, lines[0]), "once a start, first of all"
    assert first["layout"] == "2 processes x 1 micro-batch x 48 = global batch 96"
    assert first["environment"]["torch"] == torch.__version__


def test_time_goes_on_where_the_work_was_gone_on_with(finished: Path) -> None:
    run = read_run(finished)
    times = elapsed_s(run)
    assert len(times) == len(run.rows)
    assert times == sorted(times)
    gap = run.starts[1]["time"] - run.starts[0]["time"]
    assert times[-1] < run.rows[-1]["clock"]["time"] - run.starts[0]["time"] <= gap + times[-1]
    assert resumed_steps(run) == [28]


def test_every_row_says_how_fast_and_held_up_by_what(finished: Path) -> None:
    for row in read_run(finished).rows:
        clock = row["clock"]
        assert 0 <= clock["data_wait"] <= 1
        assert 50 < clock["peak_memory_mb"] < 10_000
        assert clock["images_per_s"] == pytest.approx(96 / clock["step_s"], rel=0.01)
        assert "mfu" not in clock, "there is no GPU"


def recorder(folder: Path) -> Recorder:
    return Recorder(
        folder, Log(), ["a", "b"], lambda samples: ([], np.zeros((0, 1, 1, 1), np.uint8))
    )


def test_a_full_disk_costs_the_pictures_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.recorder.write_atomic", full)
    with caplog.at_level(logging.WARNING):
        recorder(tmp_path).evaluation(3, {"images": torch.tensor(1)})
    assert "evaluation.npz not written: [Errno 28] No space left on device" in caplog.text


def test_mixed_samples_name_both_classes(tmp_path: Path) -> None:
    batch = {
        "label": torch.tensor([0, 1]),
        "partner_label": torch.tensor([1, 1]),
        "own_share": torch.tensor([0.75, 0.5]),
    }
    written = recorder(tmp_path)
    written.begin({"step": 0}, batch, np.zeros((2, 4, 4, 3), np.uint8))
    written.close()
    assert read_run_samples(tmp_path) == ["75% a, 25% b", "b"]


def read_run_samples(folder: Path) -> Any:
    with np.load(folder / "samples.npz") as file:
        return file["labels"].tolist()


def test_pictures_are_the_datasets_and_as_seen_undoes_the_normalisation() -> None:
    images = torch.randint(256, (5, 3, 6, 6), dtype=torch.uint8)
    data = MemoryImages(images, torch.arange(5), list("abcde"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    from data.transforms import eval_transform

    transform = eval_transform(data, torch.device("cpu"))
    source = Source(data, list, transform, torch.device("cpu"))  # type: ignore[arg-type]
    found, shown = pictures(source, [3, 1])
    assert found == [3, 1]
    assert np.array_equal(shown[0], images[3].permute(1, 2, 0))
    samples = np.arange(5)
    batch = transform(data.__getitems__(samples), samples, 0)
    assert np.array_equal(as_seen(batch, data), images.permute(0, 2, 3, 1))


def test_rows_are_json_lines_with_the_clock_apart(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 43))
    timed = {"step_s", "images_per_s", "save_stall_s", "data_wait", "peak_memory_mb", "time"}
    assert all(timed <= set(row["clock"]) for row in rows)
    assert not any(timed & set(row["train"]) for row in rows)
