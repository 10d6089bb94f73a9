"""One optimizer step: forward, backward, the check of the gradient, the update."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from configs.schema import Config
from engine.exact import exact
from engine.gradient import (
    Batch,
    Count,
    MicroBatch,
    StepSettings,
    Trains,
    averaged,
    key_randomness,
    mixed_precision,
)
from engine.optim import gradients, set_learning_rate


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
        accumulate=exact if config.ddp.exact else averaged,
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
) -> tuple[Tensor, Count, Tensor]:
    """Take optimizer step `step` (from 0) on the next micro-batches, with learning rate `rate`.

    Returns this rank's summed loss () in units of 2**-32, what it is a sum over, and the norm () of
    the whole gradient, on the device and not yet read. On the CPU, NonFinite before a step that
    would poison the weights.
    """
    loss_units, count = settings.accumulate(ddp_model, task, batches, settings, step)
    norm = clip(optimizer, settings.clip_norm)
    if settings.device.type == "cpu":
        require_finite(norm, step)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad()
    return loss_units, count, norm


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
    unbroken run did. Gradients and buffers are put back as they were. Exact mode does not sum in
    buckets.
    """
    if settings.accumulate is exact:
        return
    buffers = {name: buffer.clone() for name, buffer in ddp_model.module.named_buffers()}
    for _ in range(passes):
        key_randomness(settings, 0, 0)
        with mixed_precision(settings):
            loss = task.loss(ddp_model, batch)
        (loss * 0.0).backward()  # type: ignore[no-untyped-call]
        ddp_model.zero_grad()
    for name, buffer in ddp_model.module.named_buffers():
        buffer.copy_(buffers[name])
