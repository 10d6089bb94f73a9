"""The newest results as a table, written into docs/performance.md between its two marks."""

import argparse
import json
from pathlib import Path
from typing import Any

from bench.paired import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
FIRST, LAST = "<!-- results -->\n", "<!-- end of results -->\n"
CONDITIONS = ("bench", "when", "versions", "cpu", "cores", "load_1min", "threads")


def run(argv: list[str]) -> None:
    """Rewrite the table."""
    argparse.ArgumentParser("bench table").parse_args(argv)
    before, _, rest = PAGE.read_text().partition(FIRST)
    _, _, after = rest.partition(LAST)
    PAGE.write_text(before + FIRST + "\n" + table(newest()) + "\n" + LAST + after)


def newest() -> list[dict[str, Any]]:
    """The last result of each benchmark and case, in the order of their names."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(RESULTS.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[f"{row['bench']}, {_case(row)}"] = row
    return list(found.values())


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each figure that has a spread, and one for the machine and versions."""
    lines = [
        "| bench | case | figure | median | quartiles | 95 % interval | n |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, dict) and "interval" in value:
                low, high = (f"{end:.4g}" for end in value["quartiles"])
                least, most = (f"{end:.4g}" for end in value["interval"])
                lines.append(
                    f"| {row['bench']} | {_case(row)} | {name} | {value['median']:.4g} "
                    f"| {low} - {high} | {least} - {most} | {value['count']} |"
                )
    machines = sorted({_machine(row) for row in rows})
    return "\n".join([*lines, "", *machines]) + "\n"


def _case(row: dict[str, Any]) -> str:
    """What tells one result of a benchmark from another."""
    named = {key: value for key, value in row.items() if key not in CONDITIONS}
    return ", ".join(
        f"{key} {value}" for key, value in named.items() if isinstance(value, int | str)
    )


def _machine(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"{row['bench']}: {row['cores']} cores of {row['cpu']}, {versions}."
