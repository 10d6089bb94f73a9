"""`python -m report RUN [RUN ...]`: makes a run's report.html again, or lays runs side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from report.make import write_comparison, write_report
from utils.command import Parser, refusing


@refusing
def main(argv: Sequence[str]) -> int:
    """Print where the page is; 0, or 2 after one message when a folder is no run folder."""
    parser = Parser(
        prog="python -m report",
        description="Write RUN/report.html, or, of several runs, one page with all of them.",
        epilog="examples:\n"
        "  python -m report runs/quickstart\n"
        "  python -m report runs/quickstart runs/quickstart-2      runs/comparison.html\n"
        "  python -m report runs/quickstart runs/quickstart-2 --output both.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run folder")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="where to write (RUN/report.html; of several, comparison.html beside the first RUN)",
    )
    given = parser.read(argv)
    if len(given.runs) == 1:
        print(write_report(given.runs[0], given.output))
    else:
        print(write_comparison(given.runs, given.output))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
