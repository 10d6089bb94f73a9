"""The command line of train.py: which configuration, which checkpoint, which overrides."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.command import Parser

_EXAMPLES = """\
examples:
  torchrun --nproc_per_node=2 train.py                     the quickstart on two processes
  torchrun --nproc_per_node=8 train.py --config configs/fashion_mnist.yaml optim.lr=0.4
  torchrun --nproc_per_node=2 train.py --resume runs/quickstart/last.pt train.epochs=8
  torchrun --nproc_per_node=2 train.py --resume auto --config configs/quickstart.yaml
  python train.py --evaluate runs/quickstart/best.pt       one process, no launcher
  python train.py --rehearse 1024 train.global_batch=1024  some steps of rank 0 of 1,024, here

docs/options.md lists every KEY with what it takes. ./launch.sh takes the same arguments, makes the
environment where there is none, and starts torchrun (NPROC=4 ./launch.sh for four processes).
ends with: 0 finished, 2 bad input, 75 stopped by a signal and saved, 1 anything else
"""

DEFAULT_CONFIG = Path(__file__).resolve().parent / "quickstart.yaml"


class Command(NamedTuple):
    config: Path | None  # None: the configuration is the checkpoint's
    resume: str | None  # "auto", or a checkpoint file
    evaluate: Path | None
    overrides: tuple[str, ...]
    rehearse: int | None = None  # processes of the job of which one is rehearsed
    rank: int = 0  # that one


def _parser() -> Parser:
    parser = Parser(
        prog="train.py",
        usage="train.py [--config FILE] [--resume FILE|auto] [--evaluate FILE]\n"
        "                [--rehearse N [--rank R]] [KEY=VALUE ...]",
        description="Train a network with DistributedDataParallel, or go on with it, or score it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML of the run (configs/quickstart.yaml)"
    )
    parser.add_argument(
        "--resume",
        metavar="FILE|auto",
        help="go on from this checkpoint; auto: the newest good one of the run, or start",
    )
    parser.add_argument("--evaluate", metavar="FILE", help="score this checkpoint, train nothing")
    parser.add_argument(
        "--rehearse",
        metavar="N",
        type=int,
        help="take a few steps of one of N processes here, print what they take, keep nothing",
    )
    parser.add_argument("--rank", metavar="R", type=int, help="which of the N is rehearsed (0)")
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="an option of the configuration, such as optim.lr=0.2; it wins over the file's",
    )
    return parser


def parse(argv: Sequence[str]) -> Command:
    """The command that `argv` (without the program's name) gives; BadInput when it is none."""
    parser = _parser()
    given = parser.read(argv)
    for name in ("config", "resume", "evaluate"):
        if getattr(given, name) == "":
            parser.error(f"--{name} needs a file")
    if given.resume is not None and given.evaluate is not None:
        parser.error("--resume and --evaluate exclude each other")
    _require_rehearsal(parser, given)
    file = given.evaluate if given.resume in (None, "auto") else given.resume
    if file is not None and given.config is not None:
        parser.error(
            f"--config beside a checkpoint: {file} holds its own; change it with KEY=VALUE"
        )
    config = None if file is not None else Path(given.config) if given.config else _default_config()
    evaluate = None if given.evaluate is None else Path(given.evaluate)
    overrides = tuple(given.overrides)
    return Command(config, given.resume, evaluate, overrides, given.rehearse, given.rank or 0)


def _require_rehearsal(parser: Parser, given: argparse.Namespace) -> None:
    """BadInput when --rehearse or --rank make no sense."""
    size, rank = given.rehearse, given.rank
    if size is None:
        if rank is not None:
            parser.error("--rank says which process of --rehearse N is played: give both")
        return
    if size < 1:
        parser.error(f"--rehearse {size}: a job has at least 1 process")
    if rank is not None and not 0 <= rank < size:
        parser.error(f"--rank {rank}: the ranks of {size} processes are 0 to {size - 1}")
    if given.resume is not None or given.evaluate is not None:
        other = "--evaluate" if given.resume is None else "--resume"
        parser.error(f"--rehearse starts a run from its beginning: leave out {other}")


def _default_config() -> Path:
    """The quickstart of this repository, written short when it lies under the working folder."""
    here = Path.cwd()
    return (
        DEFAULT_CONFIG.relative_to(here) if DEFAULT_CONFIG.is_relative_to(here) else DEFAULT_CONFIG
    )
