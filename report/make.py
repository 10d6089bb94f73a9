"""Pages written to files."""

from collections.abc import Sequence
from pathlib import Path

from report.page import comparison_page, run_page
from report.read import read_run
from utils.durable import write_atomic


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder to `out`, or to its report.html; returns where."""
    out = out or run / "report.html"
    write_atomic(out, run_page(read_run(run)).encode())
    return out


def write_comparison(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page with all of the run folders to `out`, or to comparison.html beside the first
    of them; returns where."""
    out = out or runs[0].resolve().parent / "comparison.html"
    write_atomic(out, comparison_page([read_run(run) for run in runs]).encode())
    return out
