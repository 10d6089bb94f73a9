"""One self-contained page of one run, or of several side by side."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from report import charts, pictures
from report.charts import Line
from report.read import (
    Arrays,
    Row,
    Run,
    best_evaluated,
    best_metric,
    elapsed_s,
    last_evaluated,
    rate_names,
    resumed_steps,
    series,
)

_UNIT = 2**32  # of losses and confidences kept as integers
_SHOWN = 24  # samples; worst mistakes are all shown
_PAIRS = 8  # most frequent confusions


def run_page(run: Run) -> str:
    """The report of one run as HTML."""
    classes = [str(name) for name in run.evaluation.get("classes", [])]
    return _render(
        "run.html.jinja",
        run=run,
        title=run.name,
        state=_state(run),
        headline=_headline(run),
        figures=_figures(run),
        by_step=[Markup(svg) for svg in _all_curves([run], over_time=False)],
        by_time=[Markup(svg) for svg in _all_curves([run], over_time=True)],
        evaluation=_evaluation(run.evaluation, classes),
        mistakes=_mistakes(run.evaluation, classes),
        samples=_samples(run.samples),
        start=run.starts[-1] if run.starts else None,
    )


def comparison_page(runs: Sequence[Run]) -> str:
    """Several runs side by side as HTML: best and last metrics, curves, differing options."""
    names = list(dict.fromkeys(name for run in runs for name in rate_names(run)))
    keys = sorted({key for run in runs for key in run.config})
    values = {key: [run.config.get(key, "") for run in runs] for key in keys}
    return _render(
        "comparison.html.jinja",
        runs=runs,
        title=" · ".join(run.name for run in runs),
        names=["loss", *names],
        best=[_best_told(run) for run in runs],
        last=[row["eval"] if (row := last_evaluated(run)) else {} for run in runs],
        rates=[_median(run, "images_per_s") for run in runs],
        states=[_state(run) for run in runs],
        by_step=[Markup(svg) for svg in _all_curves(runs, over_time=False)],
        by_time=[Markup(svg) for svg in _all_curves(runs, over_time=True)],
        differing={key: row for key, row in values.items() if len(set(row)) > 1},
    )


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=_size, moment=_moment, percent=_percent, metric=_metric)
    return environment.get_template(template).render(**values)


def _all_curves(runs: Sequence[Run], *, over_time: bool) -> list[str]:
    """The charts of everything measured along the way; what no run has is left out."""
    rates = list(dict.fromkeys(name for run in runs for name in rate_names(run)))
    shares = [("eval", name, name) for name in rates if name != "calibration_error"]
    wanted: list[tuple[str, str, list[tuple[str, str, str]], float, dict[str, bool]]] = [
        ("Loss", "loss", [("train", "loss", "training"), ("eval", "loss", "held out")], 1, {}),
        ("Held-out metrics", "%", shares, 100, {}),
        ("Calibration error", "%", [("eval", "calibration_error", "")], 100, {"from_zero": True}),
        ("Learning rate", "learning rate", [("train", "lr", "")], 1, {"from_zero": True}),
        ("Gradient norm", "norm", [("train", "grad_norm", "")], 1, {"log_scale": True}),
        ("Throughput", "images/s", [("clock", "images_per_s", "")], 1, {"from_zero": True}),
        ("Waiting for data", "% of the step", [("clock", "data_wait", "")], 100,
         {"from_zero": True}),
        ("Model FLOPs utilisation", "% of peak", [("clock", "mfu", "")], 100, {"from_zero": True}),
        ("Checkpoint stall", "s", [("clock", "save_stall_s", "")], 1, {"from_zero": True}),
        ("Peak memory", "MB", [("clock", "peak_memory_mb", "")], 1, {"from_zero": True}),
    ]  # fmt: skip
    divisor, unit_of_time = _time_unit(runs) if over_time else (1.0, "")
    # Side by side, a chart of several curves a run would be a tangle: the first is enough.
    drawn = []
    for title, unit, sources, factor, scale in wanted:
        kept = sources if len(runs) == 1 else sources[-1:] if title == "Loss" else sources[:1]
        lines = [
            replace(line, label=line.label if len(runs) == 1 else run.name)
            for run in runs
            for source in kept
            if (line := _line(run, source, factor, divisor if over_time else None))
        ]
        if len(runs) > 1 and kept and kept[0][2]:
            title = f"{title}: {kept[0][2]}"
        if lines:
            marks = _marks(runs[0], divisor if over_time else None) if len(runs) == 1 else []
            x_label = f"time, {unit_of_time}" if over_time else "step"
            drawn.append(
                charts.curves(title, lines, x_label=x_label, y_label=unit, marks=marks, **scale)
            )
    return drawn


def _time_unit(runs: Sequence[Run]) -> tuple[float, str]:
    """(seconds in it, name) of the unit that suits the longest of the runs."""
    longest = max((elapsed_s(run)[-1] for run in runs if run.rows), default=0.0)
    if longest < 180:
        return 1.0, "s"
    return (60.0, "min") if longest < 3 * 3600 else (3600.0, "h")


def _line(
    run: Run, source: tuple[str, str, str], factor: float, unit_s: float | None
) -> Line | None:
    """The curve of `source` over the step, or over the time in units of `unit_s` seconds."""
    part, name, label = source
    numbers, values = series(run, part, name)
    if not numbers:
        return None
    times = elapsed_s(run) if unit_s else []
    x = [times[n] / unit_s if unit_s else run.rows[n]["step"] for n in numbers]
    return Line(label.replace("_", " "), x, [factor * v for v in values], part == "eval")


def _marks(run: Run, unit_s: float | None) -> list[float]:
    steps = resumed_steps(run)
    if not unit_s:
        return [float(step) for step in steps]
    times = dict(zip((row["step"] for row in run.rows), elapsed_s(run), strict=True))
    return [max((t for s, t in times.items() if s <= step), default=0.0) / unit_s for step in steps]


def _state(run: Run) -> tuple[str, str]:
    """(kind, words) of how the run stands."""
    if run.exit is None:
        return "open", "running, or killed: no exit code yet"
    code, reason = run.exit
    return ("done", "finished") if code == 0 else ("stopped", f"exit code {code}: {reason}")


def _headline(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of the best evaluation and of the last: (which it is, its figures as `_figures`)."""
    best, last, metric = best_evaluated(run), last_evaluated(run), best_metric(run)
    kinds: list[tuple[str, Row]] = []
    if best and metric:
        name = metric[0].replace("_", " ")
        kinds.append((f"Best {name}{', and last evaluation' if best is last else ''}", best))
    if last and best is not last:
        kinds.append(("Last evaluation", last))
    return [
        (
            f"{kind}: {_where(row)}",
            [(name.replace("_", " "), _metric(value, name)) for name, value in row["eval"].items()],
        )
        for kind, row in kinds
    ]


def _best_told(run: Run) -> str:
    """`accuracy 99.44 %, epoch 5, step 70`, of the best evaluation."""
    best, metric = best_evaluated(run), best_metric(run)
    if best is None or metric is None:
        return "\N{EN DASH}"
    name = metric[0]
    return f"{name.replace('_', ' ')} {_metric(best['eval'][name], name)}, {_where(best)}"


def _where(row: Row) -> str:
    return f"epoch {row['epoch']}, step {row['step']:,}"


def _figures(run: Run) -> list[tuple[str, str]]:
    """(name, value with unit) of what is asked first of a run."""
    if not run.rows:
        return []
    last, epochs = run.rows[-1], run.config.get("train.epochs", "?")
    found = [
        ("epochs done", f"{last['epoch']} of {epochs}"),
        ("steps", f"{last['step']:,}"),
        ("time", _duration(elapsed_s(run)[-1])),
    ]
    for name, label, shown in (
        ("images_per_s", "images/s, all processes", "{:,.0f}"),
        ("data_wait", "of the step waiting for data", "{:.2%}"),
        ("mfu", "model FLOPs utilisation", "{:.2%}"),
        ("peak_memory_mb", "peak memory of a process", "{:,.0f} MB"),
    ):
        value = _median(run, name)
        if value is not None:
            found.append((label, shown.format(value).replace("%", "\N{NO-BREAK SPACE}%")))
    return found


def _median(run: Run, name: str) -> float | None:
    _, values = series(run, "clock", name)
    return float(np.median(values)) if values else None


def _evaluation(sums: Arrays, classes: list[str]) -> dict[str, Any]:
    """Charts and tables of a classifier's sums; empty for another task."""
    if "per_class" not in sums:
        return {}
    images, predictions, both = sums["per_class"].T
    found: dict[str, Any] = {
        "step": int(sums["step"]),
        "reliability": Markup(charts.reliability(sums["calibration"])),
        "per_class": [
            {"name": name, "images": int(n), "accuracy": r / n if n else None,
             "f1": 2 * r / (n + p) if n + p else None}
            for name, n, p, r in zip(classes, images, predictions, both, strict=True)
        ],
    }  # fmt: skip
    if "confusion" in sums:
        found["confusion"] = Markup(charts.confusion(sums["confusion"], classes))
        off = sums["confusion"] - np.diag(sums["confusion"].diagonal())
        order = np.argsort(-off, axis=None, kind="stable")[:_PAIRS]
        pairs = [(int(place) // len(classes), int(place) % len(classes)) for place in order]
        found["pairs"] = [(classes[t], classes[p], int(off[t, p])) for t, p in pairs if off[t, p]]
    return found


def _mistakes(sums: Arrays, classes: list[str]) -> list[dict[str, Any]]:
    """The worst mistakes, each an image with truth, prediction and confidence."""
    if "worst_mistakes" not in sums:
        return []
    shown = dict(zip(sums["picture_samples"].tolist(), sums["pictures"], strict=True))
    return [
        {
            "image": pictures.data_uri(shown[sample]),
            "truth": classes[truth],
            "prediction": classes[prediction],
            "confidence": confidence / _UNIT,
            "loss": loss / _UNIT,
            "sample": sample,
        }
        for loss, sample, truth, prediction, confidence in sums["worst_mistakes"].tolist()
        if sample in shown
    ]


def _samples(arrays: Arrays) -> list[tuple[str, str]]:
    """(image, label) of training samples as the network saw them."""
    if not arrays:
        return []
    images, labels = arrays["pictures"][:_SHOWN], arrays["labels"][:_SHOWN]
    return [(pictures.data_uri(i), str(n)) for i, n in zip(images, labels, strict=True)]


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _moment(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _metric(value: float | None, name: str) -> str:
    """A metric as text; None stands for a number that was not finite."""
    if value is None:
        return "not finite"
    return f"{value:.4f}" if name == "loss" else _percent(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )
