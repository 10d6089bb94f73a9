"""One optimizer step: forward, backward, the check of the gradient, the update."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from configs.schema import Config
from engine.optim import gradients, set_learning_rate
from utils.fixed import to_fixed
from utils.keyed import seed_of

Batch = dict[str, Tensor]


class MicroBatch(Protocol):
    """A batch of one forward, and its number among the micro-batches of the global batch."""

    @property
    def index(self) -> int: ...

    @property
    def batch(self) -> Batch: ...


DROPOUT = 1  # the stream of keys that a forward pass draws from


class Trains(Protocol):
    """The part of a task that a step needs (see tasks/task.py)."""

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

    def described(self) -> str:
        """The layout of a step, such as `2 processes x 3 micro-batches x 16 = global batch 96`."""
        sizes = sorted(set(self.micro_batches))
        size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} or {sizes[-1]}"
        processes = f"{self.world_size} process{'es' if self.world_size > 1 else ''}"
        count = len(self.micro_batches)
        parts = f"{count} micro-batch{'es' if count > 1 else ''}"
        return f"{processes} x {parts} x {size} = global batch {self.global_batch}"


def step_settings(
    config: Config, micro_batches: Sequence[int], world_size: int, device: torch.device
) -> StepSettings:
    """The settings of every step of a run, and of its evaluations."""
    return StepSettings(
        seed=config.seed,
        precision=config.train.precision,
        world_size=world_size,
        global_batch=config.train.global_batch,
        micro_batches=tuple(micro_batches),
        clip_norm=config.optim.clip_norm,
        device=device,
    )


class NonFinite(RuntimeError):
    """The gradient of a step is not finite; the step was not taken."""


def train_step(
    ddp_model: DistributedDataParallel,
    task: Trains,
    batches: Iterator[MicroBatch],
    optimizer: Optimizer,
    settings: StepSettings,
    step: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Take optimizer step `step` (from 0) on the next micro-batches, with learning rate `rate`.

    Returns this rank's summed loss () in units of 2**-32 and the norm () of the whole gradient,
    both on the device and not yet read. On the CPU, NonFinite before a step that would poison the
    weights.
    """
    loss_units = accumulate(ddp_model, task, batches, settings, step)
    norm = clip(optimizer, settings.clip_norm)
    if settings.device.type == "cpu":
        require_finite(norm, step)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad()
    return loss_units, norm


def accumulate(
    ddp_model: DistributedDataParallel,
    task: Trains,
    batches: Iterator[MicroBatch],
    settings: StepSettings,
    step: int,
) -> Tensor:
    """Leave the gradient of the mean loss over the global batch in `.grad`; return the summed loss.

    All micro-batches but the last run under `no_sync`. DDP averages over ranks, hence the factor.
    """
    scale = settings.world_size / settings.global_batch
    loss_units = torch.zeros((), dtype=torch.int64, device=settings.device)
    for index in range(len(settings.micro_batches)):
        piece = next(batches)
        key_randomness(settings, step, piece.index)
        is_last = index == len(settings.micro_batches) - 1
        with nullcontext() if is_last else ddp_model.no_sync():
            with mixed_precision(settings):
                loss = task.loss(ddp_model, piece.batch)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        loss_units += to_fixed(loss)
    return loss_units


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


def clip(optimizer: Optimizer, max_norm: float | None) -> Tensor:
    """The norm () of the whole gradient, which is scaled down to `max_norm` when longer."""
    parts = gradients(optimizer)
    norm = nn.utils.get_total_norm(parts)
    if max_norm is not None:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(parts, factor)
    return norm


def require_finite(norm: Tensor, step: int) -> None:
    """Raise NonFinite naming the step (from 1) unless the gradient norm is finite.

    DDP has made the gradient the same on every rank, so all ranks raise together.
    """
    value = float(norm)
    if not torch.isfinite(torch.tensor(value)):
        raise NonFinite(
            f"step {step + 1}: the gradient norm is {value}; the step was not taken. "
            "The last checkpoint is from before it: lower optim.lr, set optim.clip_norm, "
            "or look at the samples of this step"
        )


def warm_up(
    ddp_model: DistributedDataParallel,
    task: Trains,
    batch: Batch,
    settings: StepSettings,
    passes: int = 2,
) -> None:
    """Throw-away synchronised passes after which DDP's gradient buckets have their final layout.

    DDP regroups its buckets after the first backward of a process (after the second with
    `static_graph`), and the order of a sum over three ranks depends on a gradient's place in its
    bucket: without this a resumed process would take its first step in another layout than the
    unbroken run did. Gradients and buffers are put back as they were.
    """
    buffers = {name: buffer.clone() for name, buffer in ddp_model.module.named_buffers()}
    for _ in range(passes):
        key_randomness(settings, 0, 0)
        with mixed_precision(settings):
            loss = task.loss(ddp_model, batch)
        (loss * 0.0).backward()  # type: ignore[no-untyped-call]
        ddp_model.zero_grad()
    for name, buffer in ddp_model.module.named_buffers():
        buffer.copy_(buffers[name])
