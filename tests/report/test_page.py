"""The page: whole, self-contained, and made of whatever a run folder holds so far."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from checkpoint.open import read
from report import follow
from report.__main__ import main
from report.make import write_report
from report.page import run_page
from report.read import best_evaluated, read_run
from utils.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_script(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    loaded = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page)
    assert {address[:5] for address in loaded if not address.startswith("#")} == {"data:"}
    assert "<script" not in page
    assert "@import" not in page
    assert len(page) < 3_000_000


def test_the_page_shows_every_part(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for heading in (
        "Along the way", "Held-out data at the last evaluation, step 42", "Worst mistakes",
        "Training samples",
        "Processes", "Checkpoints", "Starts", "Command", "Environment", "Configuration",
    ):  # fmt: skip
        assert f">{heading}<" in page, heading
    for title, unit in (
        ("Loss", "loss"), ("Held-out metrics", "%"), ("Calibration error", "%"),
        ("Learning rate", "learning rate"), ("Gradient norm", "norm"),
        ("Throughput", "images/s"), ("Waiting for data", "% of the step"),
        ("Checkpoint stall", "s"), ("Peak memory", "MB"), ("Confusion matrix", "truth"),
        ("Reliability", "accuracy, %"),
    ):  # fmt: skip
        for text in (title, unit):
            assert re.search(rf"<text[^>]*>{re.escape(text)}</text>", page), text
    assert "time, s</text>" in page
    assert "taken for" in page
    assert "torch" in page and "save.every_steps" not in page and "every_steps: 14" in page
    assert "step-00000042.pt = best.pt = last.pt" in page or "step-00000042.pt = last.pt" in page


def evaluated_as(folder: Path, metric: str, higher_is_better: bool, values: list[float]) -> None:
    """Let the three evaluations of `folder` have had these values of its best metric."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row, value in zip((row for row in rows if "eval" in row), values, strict=True):
        row["eval"][metric] = value
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    for start in starts:
        start["best_metric"] = {"name": metric, "higher_is_better": higher_is_better}
    (folder / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))


def test_the_best_evaluation_is_the_one_of_best_pt(finished: Path) -> None:
    row = best_evaluated(read_run(finished))
    assert row is not None
    assert row["step"] == read(finished / "best.pt")["cursor"]["step"]


@pytest.mark.parametrize(
    ("metric", "higher_is_better", "values"),
    [("accuracy", True, [0.2, 0.875, 0.875]), ("loss", False, [2.0, 0.875, 1.0])],
)
def test_the_best_evaluation_is_shown_beside_the_last(
    copied: Path, metric: str, higher_is_better: bool, values: list[float]
) -> None:
    evaluated_as(copied, metric, higher_is_better, values)
    page = page_of(copied)
    best, last = page.index(f">Best {metric}: epoch 2, step 28<"), page.index(">Last evaluation: ")
    assert page.index("epoch 3, step 42<") > last > best
    assert ("87.50" if metric == "accuracy" else "0.8750") in page[best:last]
    out = copied.parent / "both.html"
    assert main([str(copied), str(copied), "--output", str(out)]) == 0
    assert re.search(rf"<td>{metric} (87.50.%|0.8750), epoch 2, step 28</td>", out.read_text())


def test_a_best_evaluation_that_is_the_last_is_shown_once(copied: Path) -> None:
    evaluated_as(copied, "accuracy", True, [0.2, 0.3, 0.875])
    page = page_of(copied)
    assert ">Best accuracy, and last evaluation: epoch 3, step 42<" in page
    assert ">Last evaluation" not in page


def test_an_evaluation_before_the_metric_was_changed_is_not_the_best(copied: Path) -> None:
    evaluated_as(copied, "accuracy", True, [0.2, 0.875, 0.3])  # gone on with after the second
    starts = [json.loads(line) for line in (copied / "starts.jsonl").read_text().splitlines()]
    starts[0]["best_metric"] = {"name": "loss", "higher_is_better": False}
    (copied / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    row = best_evaluated(read_run(copied))
    assert row is not None and row["step"] == 42


def test_epochs_count_from_one_as_on_the_console(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "epoch 0" not in page
    assert "as the network saw them in epoch 1" in page


def test_a_large_job_is_shown_by_its_first_hosts(copied: Path) -> None:
    starts = [json.loads(line) for line in (copied / "starts.jsonl").read_text().splitlines()]
    named = [
        {"host": f"node{n}", "first": 8 * n, "last": 8 * n + 7, "device": "cuda (NVIDIA H100)"}
        for n in range(64)
    ]
    starts[-1]["processes"] = {"count": 65536, "hosts": 8192, "listed": named}
    (copied / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    page = page_of(copied)
    assert "<summary>65,536 on 8,192 host(s)</summary>" in page
    row = '<td class="number">504\N{EN DASH}511</td><td>node63</td><td>cuda (NVIDIA H100)</td>'
    assert row in page
    assert "8,128 more; where rank K ran is the first line of logs/rank-K.log" in page
    assert '<td class="number">65536</td>' in page


def test_the_load_report_is_shown(copied: Path) -> None:
    report = {
        "file": "weights.pt",
        "loaded": ["a", "b"],
        "loaded_parameters": 1234,
        "model_parameters": 2000,
        "reinitialised": {"head.weight": "the file's classes are others"},
        "unused": ["fc.bias"],
    }
    (copied / "load_report.json").write_text(json.dumps(report))
    page = page_of(copied)
    assert "2 tensors, 1,234 of\n2,000 parameters" in page
    assert "head.weight" in page and "fc.bias" in page


@pytest.mark.parametrize(
    "missing",
    ["metrics.jsonl", "starts.jsonl", "evaluation.npz", "samples.npz", "exit", "config.yaml"],
)
def test_the_page_is_made_without_what_is_not_there_yet(copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    page = page_of(copied)
    assert page.rstrip().endswith("</html>")
    if missing == "exit":
        assert "running, or killed" in page


def test_the_page_of_a_run_that_has_just_begun_is_made(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run:\n  name: x\n")
    assert "No row of metrics yet" in page_of(tmp_path)


def test_a_row_that_is_being_written_is_left_out(copied: Path) -> None:
    rows = copied / "metrics.jsonl"
    rows.write_text(rows.read_text()[:-20])
    assert read_run(copied).rows[-1]["step"] == 41
    assert page_of(copied)


def test_how_a_run_ended_is_said(copied: Path) -> None:
    (copied / "exit").write_text("75 stopped by SIGTERM <now>\n")
    assert "exit code 75: stopped by SIGTERM &lt;now&gt;" in page_of(copied)


def test_names_from_the_data_are_text_and_never_markup(copied: Path) -> None:
    arrays = dict(read_run(copied).evaluation)
    arrays["classes"] = np.array(["<script>alert(1)</script>", "$\\frac{", *"cdefghij"])
    np.savez(copied / "evaluation.npz", **arrays)
    page = page_of(copied)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "$\\frac{" in page


@pytest.mark.parametrize("classes", [2, 100, 1000])
def test_any_number_of_classes_fits(copied: Path, classes: int) -> None:
    arrays = dict(read_run(copied).evaluation)
    counts = np.random.default_rng(0).integers(0, 5, (classes, classes))
    both = counts.diagonal()
    arrays["confusion"] = counts
    arrays["per_class"] = np.stack([counts.sum(1), counts.sum(0), both], axis=1)
    arrays["classes"] = np.array([f"class number {number}" for number in range(classes)])
    arrays["worst_mistakes"] = np.full((32, 5), -1)
    np.savez(copied / "evaluation.npz", **arrays)
    page = page_of(copied)
    assert len(page) < 3_000_000
    assert f"class number {classes - 1}" in page


def test_large_colour_images_keep_the_page_small(copied: Path) -> None:
    arrays = dict(read_run(copied).samples)
    generator = np.random.default_rng(0)
    arrays["pictures"] = generator.integers(0, 256, (24, 224, 224, 3), dtype=np.uint8)
    arrays["labels"] = np.array(["a"] * 24)
    np.savez(copied / "samples.npz", **arrays)
    assert len(page_of(copied)) < 3_000_000


def test_another_tasks_evaluation_shows_its_metrics_without_a_classifiers_charts(
    copied: Path,
) -> None:
    rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "eval" in row:
            row["eval"] = {"mean_iou": 0.5, "loss": 1.0}
    (copied / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(copied / "evaluation.npz", step=np.array(3), pixels=np.arange(4))
    page = page_of(copied)
    assert "mean iou" in page
    assert "Confusion matrix" not in page


def test_metrics_that_are_not_finite_are_said(copied: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    rows[-1]["eval"] = dict.fromkeys(rows[-1]["eval"])
    rows[-1]["train"] |= {"loss": None, "grad_norm": None}
    (copied / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert page_of(copied).count("<b>not finite</b>") == len(rows[-1]["eval"])
    out = tmp_path / "two.html"
    assert main([str(copied), str(copied), "--output", str(out)]) == 0
    assert "<td>not finite</td>" in out.read_text()


def test_a_long_runs_page_stays_small(copied: Path) -> None:
    rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    with (copied / "metrics.jsonl").open("w") as file:
        for number in range(5_000):
            file.write(json.dumps({**rows[number % len(rows)], "step": number}) + "\n")
    assert len(page_of(copied)) < 3_000_000


def test_runs_are_laid_side_by_side(
    finished: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied.rename(tmp_path / "other")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.2"))
    out = tmp_path / "both.html"
    assert main([str(other), str(finished)]) == 0, "beside the first of them"
    assert capsys.readouterr().out.strip() == str(tmp_path / "comparison.html")
    assert main([str(finished), str(other), "--output", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    page = out.read_text()
    assert "<th>optim.lr</th><td>0.1</td><td>0.2</td>" in page
    assert "optim.momentum" not in page, "only what differs"
    assert len(re.findall(r"<text[^>]*>other</text>", page)) >= 9, "a legend in every chart"


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    with pytest.raises(BadInput):
        read_run(tmp_path / "absent")


def test_the_command_makes_the_page_in_under_three_seconds_of_processor_time(
    copied: Path,
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-W", "error", "-m", "report", str(copied)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.stdout.decode().strip() == str(copied / "report.html")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_a_report_follows_each_evaluation_and_the_end_of_the_run(copied: Path) -> None:
    page, evaluation = copied / "report.html", copied / "evaluation.npz"
    page.unlink()
    kept = evaluation.read_bytes()
    evaluation.unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "report.follow", str(copied)], cwd=ROOT, stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    evaluation.write_bytes(kept)
    limit = time.monotonic() + 30
    while not page.exists():
        assert time.monotonic() < limit, "no report after the evaluation"
        time.sleep(0.05)
    (copied / "exit").write_text("75 stopped by a test\n")
    process.stdin.close()
    assert process.wait(30) == 0
    assert "stopped by a test" in page.read_text()


def test_reports_are_made_no_oftener_than_their_price_allows(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations, waits = iter(range(1, 100)), iter([True] * 5 + [False])
    made: list[Path] = []
    clock = iter([0.0, 2.0, *[9.0] * 20])  # a report that takes 2 s of processor time
    monkeypatch.setattr(follow, "_step_back", lambda: None)
    monkeypatch.setattr(follow, "_changed", lambda path: float(next(evaluations)))
    monkeypatch.setattr(follow.select, "select", lambda *_: ([] if next(waits) else [0], [], []))
    monkeypatch.setattr(follow.time, "process_time", lambda: next(clock))
    monkeypatch.setattr("report.make.write_report", made.append)
    follow.follow(copied)
    assert len(made) == 2, "the first, and the last; the four between come too soon"


def test_the_same_folder_gives_the_same_page(finished: Path) -> None:
    run = read_run(finished)
    assert run_page(run) == run_page(run)
