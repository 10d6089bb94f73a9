"""The command line of train.py: which configuration, which checkpoint, which overrides."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from utils.errors import BadInput

_EXAMPLES = """\
examples:
  torchrun --nproc_per_node=2 train.py                     the quickstart on two processes
  torchrun --nproc_per_node=8 train.py --config configs/fashion_mnist.yaml optim.lr=0.4
  torchrun --nproc_per_node=2 train.py --resume runs/quickstart/last.pt train.epochs=8
  torchrun --nproc_per_node=2 train.py --resume auto --config configs/quickstart.yaml
  python train.py --evaluate runs/quickstart/best.pt       one process, no launcher

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}\n{self.format_usage().rstrip()}")


def parse(argv: Sequence[str]) -> Command:
    """The command that `argv` (without the program's name) gives; BadInput when it is none."""
    parser = _Parser(
        prog="train.py",
        usage="train.py [--config FILE] [--resume FILE|auto] [--evaluate FILE] [KEY=VALUE ...]",
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
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="an option of the configuration, such as optim.lr=0.2; it wins over the file's",
    )
    given = parser.parse_intermixed_args(argv)
    for name in ("config", "resume", "evaluate"):
        if getattr(given, name) == "":
            parser.error(f"--{name} needs a file")
    if given.resume is not None and given.evaluate is not None:
        parser.error("--resume and --evaluate exclude each other")
    file = given.evaluate if given.resume in (None, "auto") else given.resume
    if file is not None and given.config is not None:
        parser.error(
            f"--config beside a checkpoint: {file} holds its own; change it with KEY=VALUE"
        )
    config = None if file is not None else Path(given.config) if given.config else _default_config()
    evaluate = None if given.evaluate is None else Path(given.evaluate)
    return Command(config, given.resume, evaluate, tuple(given.overrides))


def _default_config() -> Path:
    """The quickstart of this repository, written short when it lies under the working folder."""
    here = Path.cwd()
    return (
        DEFAULT_CONFIG.relative_to(here) if DEFAULT_CONFIG.is_relative_to(here) else DEFAULT_CONFIG
    )
