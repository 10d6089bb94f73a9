"""The most careful bare loops that a person would write by hand, to measure the harness against."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bench.paired import Block


def plain_ddp(model: nn.Module) -> nn.Module:
    """The network under DDP as a careful person has it."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def in_memory(
    model: nn.Module,
    wrapped: Callable[[nn.Module], nn.Module],
    images: Tensor,
    labels: Tensor,
    rank: int,
    world_size: int,
    batch: int,
    steps: int,
) -> Block:
    """A loop over images (N, C, H, W) uint8 in memory, `batch` a rank: a block of `steps`.

    The memory format and the optimizer are those of our defaults; the learning rate is set each
    step, one permutation drawn an epoch, the loss read every 10 steps; nothing is checked, kept or
    shown.
    """
    ddp_model = wrapped(model.to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True
    )
    mean, std = images.float().mean(), images.float().std()
    drawn = torch.Generator().manual_seed(0)
    global_batch = batch * world_size
    taken, order, low = 0, torch.randperm(len(images), generator=drawn), 0
    total = torch.zeros(())

    def block() -> None:
        nonlocal taken, order, low, total
        for _ in range(steps):
            if low + global_batch > len(images):
                order, low = torch.randperm(len(images), generator=drawn), 0
            index = order[low + rank * batch : low + (rank + 1) * batch]
            low += global_batch
            image = images.index_select(0, index).float().sub_(mean).div_(std)
            loss = cross_entropy(ddp_model(image), labels.index_select(0, index))
            loss.backward()  # type: ignore[no-untyped-call]
            rate = 0.05 * (1 + math.cos(math.pi * taken / 1e6))
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
            taken += 1
            if taken % 10 == 0:
                total.item()
                total.zero_()

    return block


def from_loader(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> Block:
    """Plain DDP over a loader's (images, labels): a block of `steps`; the loss read each step."""
    ddp_model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def block() -> None:
        for _ in range(steps):
            images, labels = next(batches)
            optimizer.zero_grad()
            loss = cross_entropy(ddp_model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()

    return block
