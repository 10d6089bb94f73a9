"""The gradient of one optimizer step: of the mean loss over the whole global batch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ddp.collectives import sum_over_ranks
from ddp.wrap import Wrapped
from utils.keyed import seed_of

Batch = dict[str, Tensor]
Count = Tensor | int

DROPOUT = 1  # the stream of keys that a forward pass draws from


class MicroBatch(Protocol):
    """A batch of one forward, its number among the micro-batches of the global batch, and how many
    of its samples could not be read and were stood in for."""

    @property
    def index(self) -> int: ...

    @property
    def batch(self) -> Batch: ...

    @property
    def skipped(self) -> int: ...


class Trains(Protocol):
    """The part of a task that a step needs (see tasks/task.py)."""

    counts_vary: bool

    def count(self, batch: Batch) -> Count: ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class StepSettings:
    """What stays the same from step to step; sizes in samples."""

    seed: int
    precision: str
    world_size: int
    global_batch: int
    micro_batches: tuple[int, ...]  # of one rank in one step, each a forward pass
    clip_norm: float | None
    device: torch.device
    scaler: GradScaler  # of the loss in fp16; lets everything through in fp32 and bf16
    accumulate: "Accumulate"  # averaged by DDP, or exact on any number of processes

    def described(self) -> str:
        """The layout of a step, such as `2 processes x 3 micro-batches x 16 = global batch 96`."""
        sizes = sorted(set(self.micro_batches))
        size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} or {sizes[-1]}"
        processes = f"{self.world_size} process{'es' if self.world_size > 1 else ''}"
        count = len(self.micro_batches)
        parts = f"{count} micro-batch{'es' if count > 1 else ''}"
        return f"{processes} x {parts} x {size} = global batch {self.global_batch}"


# Leaves the gradient in `.grad`; returns the summed loss () of each of this rank's micro-batches,
# not yet read, and what they count, which together over all ranks make the mean loss.
Accumulate = Callable[
    [Wrapped, Trains, Iterator[MicroBatch], StepSettings, int],
    tuple[list[Tensor], Count],
]


def averaged(
    ddp_model: Wrapped,
    task: Trains,
    batches: Iterator[MicroBatch],
    settings: StepSettings,
    step: int,
) -> tuple[list[Tensor], Count]:
    """Micro-batches add up in `.grad`, and DDP averages over ranks while the last runs backward.

    All but the last run under `no_sync`. The average is undone in the factor.
    """
    pieces, count, factor = counted(task, batches, settings, settings.world_size)
    losses = []
    last = len(settings.micro_batches) - 1
    for number in range(last + 1):
        piece = next(pieces)
        key_randomness(settings, step, piece.index)
        with nullcontext() if number == last else ddp_model.no_sync():
            with mixed_precision(settings):
                loss = task.loss(ddp_model, piece.batch)
            backward(loss, factor, settings)
        losses.append(loss.detach())
    return losses, count


def counted(
    task: Trains, batches: Iterator[MicroBatch], settings: StepSettings, times: int
) -> tuple[Iterator[MicroBatch], Count, Tensor]:
    """The micro-batches of a step, what they count, and the factor () of their summed losses:
    `times` over what the micro-batches of all ranks count together.

    Where every sample counts the same this is known beforehand. Where counts vary (valid pixels,
    boxes), the mean over the global batch is not the mean of the ranks' means: the counts are added
    over ranks, one small all-reduce, for which the step's micro-batches are fetched first.
    """
    parts = len(settings.micro_batches)
    if not task.counts_vary:
        factor = _fraction(times, settings.global_batch, settings.device)
        return batches, sum(settings.micro_batches), factor
    pieces = [next(batches) for _ in range(parts)]
    counts = [torch.as_tensor(task.count(piece.batch)) for piece in pieces]
    count = torch.stack(counts).sum().to(settings.device)
    total = sum_over_ranks(count.clone()).clamp(min=1)
    # Filled on the device: a number copied there would make the host wait for the device.
    return iter(pieces), count, torch.full_like(total, times, dtype=torch.float32) / total


@cache
def _fraction(above: int, below: int, device: torch.device) -> Tensor:
    """`above / below` () float32 on the device, made once."""
    return torch.full((), above, dtype=torch.float32, device=device) / below


def backward(loss: Tensor, factor: Tensor, settings: StepSettings) -> None:
    """Add the gradient of `loss * factor` to `.grad`, without computing that product; scaled up
    further by GradScaler in fp16."""
    # A copy, as a view of it may become the `.grad` of a parameter, which is then added to.
    own = factor.to(loss.dtype, copy=True)
    loss.backward(settings.scaler.scale(own))  # type: ignore[no-untyped-call]


def key_randomness(settings: StepSettings, step: int, index: int) -> None:
    """Make dropout and the like a function of (seed, step, micro-batch of the global batch)."""
    seed = seed_of(settings.seed, DROPOUT, step, index)
    torch.default_generator.manual_seed(seed)
    if settings.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def mixed_precision(settings: StepSettings) -> AbstractContextManager[None]:
    """Autocast to the configured half type, or nothing for fp32."""
    if settings.precision == "fp32":
        return nullcontext()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[settings.precision]
    return torch.autocast(settings.device.type, dtype=half)
