"""Every sample counted exactly once, on any number of ranks."""

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ddp.collectives import broadcast_bytes, broadcast_from_rank0, group_device, sum_over_ranks

Batch = dict[str, Tensor]
Sums = dict[str, Tensor]


class Measures(Protocol):
    """The part of a task that an evaluation needs (see tasks/task.py)."""

    def measure(self, model: nn.Module, batch: Batch) -> Sums: ...

    def summarise(self, sums: Sums) -> dict[str, float]: ...


def evaluate(
    model: nn.Module,
    task: Measures,
    batches: Iterable[Batch],
    precision: AbstractContextManager[None],
) -> dict[str, float]:
    """The task's metrics over the batches of all ranks together, the same on every rank.

    `model` is the bare module: the DDP forward would broadcast buffers, and wait for ranks that
    have run out of batches. Rank 0's buffers go to every rank first, since BatchNorm statistics
    differ after a step, and they are what the checkpoint stores. The sums are integers.
    """
    broadcast_from_rank0(model.buffers())
    was_training = model.training
    model.eval()
    sums: Sums = {}
    with torch.inference_mode(), precision:
        for batch in batches:
            for name, value in task.measure(model, batch).items():
                sums[name] = sums[name] + value if name in sums else value
    model.train(was_training)
    return task.summarise(_add_over_ranks(sums))


def _add_over_ranks(sums: Sums) -> Sums:
    """The sums of all ranks; a rank without a batch learns their names and shapes from rank 0.

    Batch 0 is always rank 0's, so that rank 0 knows them.
    """
    described = {name: list(value.shape) for name, value in sums.items()}
    layout: dict[str, list[int]] = json.loads(broadcast_bytes(json.dumps(described).encode()))
    flat = [
        sums[name].reshape(-1)
        if name in sums
        else torch.zeros(shape, dtype=torch.int64).reshape(-1)
        for name, shape in layout.items()
    ]
    device = group_device()
    total = sum_over_ranks(torch.cat([part.to(device, torch.int64) for part in flat])).cpu()
    parts = torch.split(total, [part.numel() for part in flat])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(layout.items(), parts, strict=True)
    }
