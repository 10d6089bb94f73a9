"""What the same bits on any number of processes cost a step, beside DDP's own average.

python -m bench exact [--cycles 10]        3 minutes on two cores

Both sides are our step on the same batches: one micro-batch a rank by DDP, one shard after another
in exact mode, for two numbers of shards. W = 1 and 2.
"""

import argparse
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from bench.paired import Block, Times, over_ranks, ratios, record, take_turns
from bench.ranks import on_ranks

BATCH, STEPS = 96, 10


def run(argv: list[str]) -> None:
    """Measure, record and print a line for each number of processes and of shards."""
    options = argparse.ArgumentParser("bench exact")
    options.add_argument("--cycles", type=int, default=10)
    cycles = options.parse_args(argv).cycles
    for world_size in (1, 2):
        times = over_ranks(on_ranks(world_size, _one_rank, world_size, cycles))
        for shards in (2, 8):
            ratio = ratios(times, f"{shards} shards", "averaged")
            record("exact", {"world_size": world_size, "shards": shards, **ratio})
            print(
                f"exact, W = {world_size}, {shards} shards of {BATCH // shards}: a step costs "
                f"{ratio['cpu'].told()} x CPU, {ratio['wall'].told()} x wall",
                flush=True,
            )


def _one_rank(rank: int, world_size: int, cycles: int) -> dict[str, Times]:
    from ddp.process import join, leave

    join()
    sides = {
        "averaged": _side(rank, world_size, "ddp.exact=false"),
        **{
            f"{shards} shards": _side(rank, world_size, "ddp.exact=true", f"ddp.shards={shards}")
            for shards in (2, 8)
        },
    }
    times = take_turns(sides, cycles)
    leave()
    return times


def _side(rank: int, world_size: int, *overrides: str) -> Block:
    """A block of our steps of the quickstart's network on random 28 x 28 images."""
    import torch

    from configs.load import from_plain
    from data.loader import micro_batches
    from ddp.wrap import wrap
    from engine.exact import forward_cap
    from engine.optim import build_optimizer
    from engine.step import step_settings, train_step
    from models.build import build_model, find_builder
    from tasks.classification import Classification

    config = from_plain({}, (f"train.global_batch={BATCH}", *overrides), "bench")
    sizes = micro_batches(BATCH // world_size, forward_cap(config))
    settings = step_settings(config, sizes, world_size, torch.device("cpu"))
    model = build_model(find_builder("small_resnet"), 10, 1, seed=0, initialise=True)
    wrapped = wrap(model, config.ddp)
    optimizer = build_optimizer(model, config.optim)
    task = Classification([str(digit) for digit in range(10)])
    pieces = [
        SimpleNamespace(
            index=rank * len(sizes) + number,
            batch={"image": torch.randn(size, 1, 28, 28), "label": torch.randint(0, 10, (size,))},
        )
        for number, size in enumerate(sizes)
    ]

    def block() -> None:
        for step in range(STEPS):
            batches: Iterator[Any] = iter(pieces)
            train_step(wrapped, task, batches, optimizer, settings, step, 0.01)

    return block
