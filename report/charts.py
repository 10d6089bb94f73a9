"""Charts as SVG that takes its colours from the page, and so is light or dark with it."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

# Colours that matplotlib is told, and what the page makes of them.
INK, FAINT, MARK, ACCENT = "#010203", "#040506", "#070809", "#0a0b0c"
LINES = [f"#1a1b{number:02x}" for number in range(8)]
_OF_THE_PAGE = {
    INK: "var(--ink)",
    FAINT: "var(--rule)",
    MARK: "var(--mark)",
    ACCENT: "var(--line-0)",
    **{colour: f"var(--line-{number})" for number, colour in enumerate(LINES)},
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: smaller, and set in the page's font
    "svg.hashsalt": "lockstep",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titley": 1.03,  # else each drawing looks for a place above everything
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}
_WIDTH, _HEIGHT = 4.2, 2.5  # inches: on a phone the page shows a point as about a pixel
_MOST_POINTS = 400
_LARGEST_LABELLED = 30  # classes whose names and counts a confusion matrix has room for


@dataclass(frozen=True)
class Line:
    """One curve; `dots` where its points are few and each counts."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


def curves(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[float] = (),
    log_scale: bool = False,
    from_zero: bool = False,
) -> str:
    """The SVG of curves on common axes; `marks` are places on the x axis with a dashed line."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(title, x_label, y_label)
        for line, colour in zip(lines, _colours(len(lines)), strict=True):
            x, y = _thinned(line.x, line.y)
            marker = "o" if line.dots or len(x) == 1 else ""
            axes.plot(x, y, color=colour, label=line.label, marker=marker, markersize=3)
        for mark in marks:
            axes.axvline(mark, color=MARK, linestyle=(0, (3, 3)), linewidth=1)
        if log_scale:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif from_zero:
            axes.set_ylim(0, 1.05 * max(axes.get_ylim()[1], 1e-9))
        if not log_scale:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        if any(line.label for line in lines):
            axes.legend(ncols=2 if len(lines) > 3 else 1)
        return _svg(figure)


def confusion(counts: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The SVG of a confusion matrix (K, K), truth by prediction, shaded by share of the truth."""
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 4.2 if len(classes) <= 12 else 6.0
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("Confusion matrix", "prediction", "truth", side)
        axes.imshow(share, cmap=_shades(), vmin=0, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if len(classes) <= _LARGEST_LABELLED:
            size = 8 if len(classes) <= 12 else 5
            names = [name if len(name) <= 12 else f"{name[:11]}…" for name in classes]
            rotation = 0 if max(map(len, names)) <= 2 else 90
            axes.set_xticks(range(len(names)), names, rotation=rotation, fontsize=size)
            axes.set_yticks(range(len(names)), names, fontsize=size)
            for (truth, prediction), count in np.ndenumerate(counts):
                if count:
                    axes.text(prediction, truth, str(count), ha="center", va="center",
                              fontsize=size)  # fmt: skip
        return _svg(figure)


def reliability(bins: NDArray[np.int64]) -> str:
    """The SVG of accuracy by confidence; bins (B + 1, 3): images, right, confidence in 2**-32.

    The last row are confidences of exactly 1: they are drawn in the bin below.
    """
    folded = np.concatenate([bins[:-2], bins[-2:].sum(axis=0, keepdims=True)]).astype(float)
    images, right, confidence = folded.T
    there = images > 0
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("Reliability", "confidence, %", "accuracy, %")
        axes.plot([0, 100], [0, 100], color=MARK, linestyle=(0, (3, 3)), linewidth=1)
        x = 100 * confidence[there] / images[there] / 2**32
        y = 100 * right[there] / images[there]
        area = 12 + 150 * np.sqrt(images[there] / images.sum())
        axes.scatter(x, y, s=area, color=ACCENT, alpha=0.6, linewidths=0)
        axes.plot(x, y, color=ACCENT, linewidth=1)
        axes.set(xlim=(0, 102), ylim=(0, 104))
        return _svg(figure)


def _axes(title: str, x_label: str, y_label: str, side: float | None = None) -> tuple[Figure, Axes]:
    """Axes that leave room for short labels, or, with a `side`, a square that fits any."""
    if side is None:  # laid out by hand: matplotlib takes twice as long
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        axes = figure.add_axes((0.17, 0.2, 0.8, 0.68))
    else:
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def _short(value: float, _: int | None) -> str:
    """`40`, `2.5k`, `1.2M`."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"


def _colours(count: int) -> list[str]:
    return [LINES[number % len(LINES)] for number in range(count)]


def _shades() -> LinearSegmentedColormap:
    """From nothing to a blue that dark and light text can be read on."""
    return LinearSegmentedColormap.from_list("shades", [(0.2, 0.5, 0.9, 0), (0.2, 0.5, 0.9, 0.75)])


def _thinned(
    x: Sequence[float], y: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `_MOST_POINTS` points, each the mean of its neighbours; the last stays as it is."""
    points = np.array([x, y], dtype=float)
    each = -(-points.shape[1] // _MOST_POINTS) if points.shape[1] else 1
    if each > 1:
        whole = points[:, : points.shape[1] // each * each].reshape(2, -1, each).mean(axis=2)
        points = np.concatenate([whole, points[:, -1:]], axis=1)
    return points[0], points[1]


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that fills its place, in the page's colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    for told, colour in _OF_THE_PAGE.items():
        text = text.replace(told, colour)
    return text
