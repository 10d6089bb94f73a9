"""Every sample counted exactly once, on any number of ranks."""

import json
import math
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ddp import watch
from ddp.collectives import (
    broadcast_bytes,
    broadcast_from_rank0,
    group_device,
    max_over_ranks,
    sum_over_ranks,
)
from ddp.stop import Votes
from engine.gradient import StepSettings, mixed_precision
from utils.errors import BadInput

Batch = dict[str, Tensor]
Sums = dict[str, Tensor]


class Measures(Protocol):
    """The part of a task that an evaluation needs (see tasks/task.py)."""

    def measure(self, model: nn.Module, batch: Batch) -> Sums: ...

    def summarise(self, sums: Sums) -> dict[str, float]: ...


class Evaluation(NamedTuple):
    """Metrics of a whole dataset, and the integer sums (on the CPU) that they come from."""

    metrics: dict[str, float | None]  # None: not a finite number
    sums: Sums


class HeldOut(Protocol):
    """Where an evaluation's batches come from (see data/feed.py)."""

    @property
    def common_batches(self) -> int: ...

    def evaluation(self) -> Generator[Batch]: ...


def scores(
    model: nn.Module, task: Measures, feed: HeldOut, settings: StepSettings, votes: Votes
) -> Evaluation | None:
    """The metrics of `model` on the held-out data; None when a wish to stop cut them short."""
    batches = watch.marked(feed.evaluation(), "evaluation", "evaluation")
    batches = votes.between(batches, feed.common_batches)
    found = evaluate(model, task, batches, mixed_precision(settings))
    return None if votes.wishes.stops else found


def evaluate(
    model: nn.Module,
    task: Measures,
    batches: Iterable[Batch],
    precision: AbstractContextManager[None],
) -> Evaluation:
    """The task's metrics over the batches of all ranks together, the same on every rank.

    `model` is the bare module: the DDP forward would broadcast buffers, and wait for ranks that
    have run out of batches. Rank 0's buffers go to every rank first, since BatchNorm statistics
    differ after a step, and they are what the checkpoint stores. The sums are integers.
    """
    broadcast_from_rank0(model.buffers())
    training = [module for module in model.modules() if module.training]  # not what is frozen
    model.eval()
    sums: Sums = {}
    with torch.inference_mode(), precision:
        for batch in batches:
            for name, value in task.measure(model, batch).items():
                sums[name] = _added(name, sums[name], value) if name in sums else value
    for module in training:
        module.training = True
    total = _add_over_ranks(sums)
    metrics = task.summarise(total).items()
    return Evaluation({name: v if math.isfinite(v) else None for name, v in metrics}, total)


def _added(name: str, one: Tensor, other: Tensor) -> Tensor:
    """Both together; of `worst_...` rows (N, C), the N with the highest first column.

    Equals are ordered by the second column, so that the order of batches does not matter.
    """
    if not name.startswith("worst_"):
        return one + other
    rows = torch.cat([one, other])
    rows = rows[rows[:, 1].argsort(stable=True)]
    return rows[rows[:, 0].argsort(descending=True, stable=True)][: len(one)]


def _add_over_ranks(sums: Sums) -> Sums:
    """The sums of all ranks; a rank without a batch learns their names and shapes from rank 0.

    Batch 0 is always rank 0's, so that rank 0 knows them.
    """
    described = {name: list(value.shape) for name, value in sums.items()}
    layout: dict[str, list[int]] = json.loads(broadcast_bytes(json.dumps(described).encode()))
    if not layout:
        raise BadInput("nothing of the held-out data could be read: look at the files named above")
    device = group_device()
    here = {
        name: sums[name].to(device, torch.int64)
        if name in sums
        else torch.full(shape, -1 if name.startswith("worst_") else 0, device=device)
        for name, shape in layout.items()
    }
    added = [name for name in layout if not name.startswith("worst_")]
    total = sum_over_ranks(torch.cat([here[name].reshape(-1) for name in added])).cpu()
    parts = dict(
        zip(added, torch.split(total, [here[name].numel() for name in added]), strict=True)
    )
    result = {name: part.reshape(layout[name]) for name, part in parts.items()}
    for name in (name for name in layout if name not in added):
        result[name] = _worst_over_ranks(_added(name, here[name], here[name][:0]).cpu())
    return result


def _worst_over_ranks(rows: Tensor) -> Tensor:
    """Of every rank's rows (N, C), sorted as `_added` does, the N first; they are found one after
    another, since all of them together would be too many on a large job."""
    unknown = torch.iinfo(torch.int64).min
    found = torch.full_like(rows, unknown)
    mine = 0  # rows of this rank that were found
    for place in range(len(rows)):
        score, sample = rows[mine, :2].tolist()
        highest = int(max_over_ranks(torch.tensor([score])))
        if highest < 0:  # nobody has more
            break
        named = -sample if score == highest else unknown
        if int(max_over_ranks(torch.tensor([named]))) == named:
            found[place] = rows[mine]
            mine += 1
    found = max_over_ranks(found)
    return found.masked_fill(found == unknown, -1)
