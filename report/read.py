"""What a run folder holds, as far as it has come: every file of it may still be missing."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from utils.errors import BadInput

Arrays = Mapping[str, NDArray[Any]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file; `names` are all of its names, since `last.pt` is a link to a step."""

    names: list[str]
    size_bytes: int
    modified: float  # unix time


@dataclass(frozen=True)
class Run:
    """A run folder; `evaluation` and `samples` are empty until they were written."""

    path: Path
    rows: list[Row]  # of metrics.jsonl
    starts: list[Row]  # of starts.jsonl: one for each time the run was started or resumed
    evaluation: Arrays
    samples: Arrays
    load_report: Row | None
    config_text: str
    config: dict[str, str]  # option -> value
    checkpoints: list[Checkpoint]
    exit: tuple[int, str] | None  # code and reason; None while it runs, or after a kill

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name


def read_run(path: Path) -> Run:
    """The run in folder `path`; BadInput when it is no run folder."""
    config = _text(path / "config.yaml")
    if not config and not (path / "metrics.jsonl").is_file():
        raise BadInput(f"{path} is no run folder: it has neither config.yaml nor metrics.jsonl")
    load_report = _text(path / "load_report.json")
    return Run(
        path=path,
        rows=_lines(path / "metrics.jsonl"),
        starts=_lines(path / "starts.jsonl"),
        evaluation=_arrays(path / "evaluation.npz"),
        samples=_arrays(path / "samples.npz"),
        load_report=json.loads(load_report) if load_report else None,
        config_text=config,
        config=dict(_flat(yaml.safe_load(config) or {})),
        checkpoints=_checkpoints(path),
        exit=_exit(_text(path / "exit")),
    )


def elapsed_s(run: Run) -> list[float]:
    """Seconds of work up to each row, without the time in which no process of the run lived."""
    begun = [start["time"] for start in run.starts]
    rows = [row["clock"].get("time", 0.0) for row in run.rows]
    if not begun or not rows:
        return [0.0] * len(rows)
    ends = [*begun[1:], float("inf")]
    before = 0.0
    found: list[float] = []
    for start, end in zip(begun, ends, strict=True):
        own = [time - start for time in rows if start <= time < end]
        found += [before + seconds for seconds in own]
        before += own[-1] if own else 0.0
    return found if len(found) == len(rows) else [time - rows[0] for time in rows]


def series(run: Run, part: str, name: str) -> tuple[list[int], list[float]]:
    """(row numbers, values) of `part.name` in the rows that have it and where it is finite."""
    pairs = [
        (number, float(row[part][name]))
        for number, row in enumerate(run.rows)
        if isinstance(row.get(part, {}).get(name), int | float)
    ]
    pairs = [(number, value) for number, value in pairs if np.isfinite(value)]
    return [number for number, _ in pairs], [value for _, value in pairs]


def rate_names(run: Run) -> list[str]:
    """The names of the evaluation's metrics, in their order, without the loss."""
    row = last_evaluated(run)
    return [name for name in row["eval"] if name != "loss"] if row else []


def last_evaluated(run: Run) -> Row | None:
    """The row of the last evaluation."""
    return next((row for row in reversed(run.rows) if "eval" in row), None)


def best_metric(run: Run) -> tuple[str, bool] | None:
    """The metric by which the run tells its evaluations apart, and whether higher is better."""
    told = run.starts[-1].get("best_metric") if run.starts else None
    return None if told is None else (told["name"], told["higher_is_better"])


def best_evaluated(run: Run) -> Row | None:
    """The row of the evaluation that best.pt is from; of equal ones the first.

    Those before the run was gone on with by another metric do not count.
    """
    metric = best_metric(run)
    if metric is None:
        return None
    name, higher_is_better = metric
    changed = [
        new["time"]
        for old, new in pairwise(run.starts)
        if new.get("best_metric") != old.get("best_metric")
    ]
    since = changed[-1] if changed else 0.0
    found = [
        (value, run.rows[number])
        for number, value in zip(*series(run, "eval", name), strict=True)
        if run.rows[number]["clock"].get("time", 0.0) >= since
    ]
    choose = max if higher_is_better else min
    return choose(found, key=itemgetter(0))[1] if found else None


def resumed_steps(run: Run) -> list[int]:
    """The steps at which the run was gone on with, by a person or by the launcher."""
    return [start["step"] for _, start in pairwise(run.starts)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _lines(path: Path) -> list[Row]:
    """The JSON object of each whole line: the last may still be in the writing."""
    lines = _text(path).splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _arrays(path: Path) -> Arrays:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _flat(values: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(values, dict):
        return [
            pair
            for key, value in values.items()
            for pair in _flat(value, f"{path}.{key}".strip("."))
        ]
    return [(path, json.dumps(values, default=str))]


def _checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoint files, oldest step first, each once under all of its names."""
    names: dict[int, list[str]] = {}
    stats = {}
    for path in sorted(folder.glob("*.pt*")):
        if re.fullmatch(r"(step-\d{8}|last|best)\.pt(\.abandoned(-\d+)?)?", path.name):
            try:
                stat = path.stat()
            except FileNotFoundError:  # retention deletes while the run goes on
                continue
            names.setdefault(stat.st_ino, []).append(path.name)
            stats[stat.st_ino] = stat
    found = [
        Checkpoint(sorted(called, key=lambda name: not name.startswith("step-")),
                   stats[number].st_size, stats[number].st_mtime)
        for number, called in names.items()
    ]  # fmt: skip
    return sorted(found, key=lambda checkpoint: checkpoint.names[0])


def _exit(text: str) -> tuple[int, str] | None:
    code, _, reason = text.strip().partition(" ")
    return (int(code), reason) if code.isdigit() else None
