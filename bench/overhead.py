"""What the harness costs a step: `train.py` itself, paused now and then for a bare loop's turn.

python -m bench overhead [--world-size 2] [--cycles 60] [--case NAME]     6 minutes on two cores

The bare loop's network is under torch's DDP, as a careful person has it, and in a second run under
our wrapping (`ddp/wrap.py`), which shows what all the rest of the harness costs. Both sides take
turns of a few steps, as many as lie between two metrics rows or whole multiples, so that each turn
of ours holds its share of the logging.
"""

import argparse
import io
import itertools
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Protocol

from bench.paired import Block, Done, Times, Turns, over_ranks, ratios, record, spread
from bench.ranks import on_ranks

# A network of 20 to 50 ms a step, and one that does nothing: all that is left is the harness.
CASES: dict[str, dict[str, Any]] = {
    "small_resnet": {
        "model": "small_resnet", "data": "digits", "image_size": 28, "batch": 48, "steps": 10,
    },
    "no-op": {
        "model": "bench/networks.py:nothing", "data": "bench/networks.py:grey",
        "image_size": None, "batch": 48, "steps": 200,
    },
}  # fmt: skip

BARE = ("torch's DDP", "our wrapping")


def run(argv: list[str]) -> None:
    """Measure every case and print what it found."""
    options = argparse.ArgumentParser("bench overhead")
    options.add_argument("--world-size", type=int, default=2)
    options.add_argument("--cycles", type=int, default=60)
    options.add_argument("--case", choices=CASES, action="append")
    given = options.parse_args(argv)
    for name, bare in itertools.product(given.case or CASES, BARE):
        with tempfile.TemporaryDirectory() as folder:
            how = (given.world_size, CASES[name], bare, given.cycles, folder)
            answers = on_ranks(given.world_size, _one_rank, *how)
        about = {"case": name, "bare": bare, "world_size": given.world_size}
        _tell(about, 2 * CASES[name]["steps"], over_ranks(answers))


def _tell(about: dict[str, Any], steps: int, times: dict[str, Times]) -> None:
    """Record and print a case, whose cycles have `steps` steps of each side."""
    result = dict(about)
    print(f"overhead, {', '.join(f'{key} {value}' for key, value in about.items())}")
    for place, kind, ranks in ((0, "cpu", about["world_size"]), (1, "wall", 1)):
        ours, bare = ([cycle[place] / steps / ranks * 1e6 for cycle in times[s]] for s in times)
        result |= {
            f"ratio_{kind}": ratios(times, "ours", "bare")[kind],
            f"ours_{kind}_us": spread(ours),
            f"bare_{kind}_us": spread(bare),
            f"added_{kind}_us": spread([a - b for a, b in zip(ours, bare, strict=True)]),
        }
        for key in ("bare", "ours", "added"):
            print(f"  {key:5} {kind:4} us a step: {result[f'{key}_{kind}_us'].told()}")
        print(f"  ours / bare, {kind}: {result[f'ratio_{kind}'].told()}", flush=True)
    record("overhead", result)


def _one_rank(
    rank: int, world_size: int, case: dict[str, Any], bare: str, cycles: int, folder: str
) -> dict[str, Times]:
    turns = Turns(lambda: _bare(rank, world_size, case, bare), case["steps"], cycles)
    harness(
        turns,
        "configs/quickstart.yaml",
        "model.weights=null",
        "data.augment.pad=0",
        f"model.name={case['model']}",
        f"data.name={case['data']}",
        f"data.image_size={'null' if case['image_size'] is None else case['image_size']}",
        f"train.global_batch={case['batch'] * world_size}",
        f"run.dir={folder}",
    )
    return turns.times


class Terminal(io.StringIO):
    """Swallows what is shown; a progress bar is only drawn on a terminal."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


class Steps(Protocol):
    """Is told of every step."""

    def step(self) -> None: ...


def harness(turns: Steps, config: str, *overrides: str) -> None:
    """Run train.py without evaluations and saves, `turns.step` called at each step, to its end."""
    sys.stderr, sys.stdout = Terminal(), Terminal()
    import train
    from data.feed import Feed

    feed: Any = Feed
    feed.training = _paused(feed.training, turns)
    endless = ("train.epochs=100000", "train.eval_every=100000", "save.every_steps=null")
    with suppress(Done):
        train.run(["--config", config, *endless, *overrides])


def _paused(batches: Callable[..., Any], turns: Steps) -> Callable[..., Generator[Any]]:
    """`batches` with a call of `turns.step` before each batch is fetched."""

    def with_turns(*args: Any) -> Generator[Any]:
        source = batches(*args)
        while True:
            turns.step()
            yield next(source)

    return with_turns


def _bare(rank: int, world_size: int, case: dict[str, Any], bare: str) -> Block:
    from bench.bare import in_memory, plain_ddp
    from configs.schema import Data, Ddp
    from data.datasets import build_dataset
    from ddp.wrap import wrap
    from models.build import build_model, find_builder

    data: Any = build_dataset(Data(name=case["data"], image_size=case["image_size"]), "train")
    model = build_model(find_builder(case["model"]), 10, 1, seed=0, initialise=True)
    return in_memory(
        model,
        plain_ddp if bare == "torch's DDP" else lambda network: wrap(network, Ddp()),
        data.images,
        data.labels,
        rank,
        world_size,
        case["batch"],
        case["steps"],
    )
