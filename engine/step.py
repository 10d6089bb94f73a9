"""One optimizer step: forward, backward, the check of the gradient, the update."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from configs.schema import Config
from ddp.collectives import gather_rows
from ddp.wrap import Wrapped
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
from engine.optim import forget_gradients, gradients, set_learning_rate


def step_settings(
    config: Config,
    micro_batches: Sequence[int],
    world_size: int,
    device: torch.device,
    saved_scaler: Mapping[str, Any] | None = None,
) -> StepSettings:
    """The settings of every step of a run, and of its evaluations.

    `saved_scaler` is the loss scale that a checkpoint goes on with.
    """
    scaler = GradScaler(device.type, enabled=config.train.precision == "fp16")
    if saved_scaler and scaler.is_enabled():
        scaler.load_state_dict(dict(saved_scaler))
    return StepSettings(
        seed=config.seed,
        precision=config.train.precision,
        world_size=world_size,
        global_batch=config.train.global_batch,
        micro_batches=tuple(micro_batches),
        clip_norm=config.optim.clip_norm,
        device=device,
        scaler=scaler,
        accumulate=exact if config.ddp.exact else averaged,
    )


class NonFinite(RuntimeError):
    """The gradient of a step is not finite; the step was not taken."""


def train_step(
    ddp_model: Wrapped,
    task: Trains,
    batches: Iterator[MicroBatch],
    optimizer: Optimizer,
    settings: StepSettings,
    step: int,
    rate: float,
) -> tuple[list[Tensor], Count, Tensor]:
    """Take optimizer step `step` (from 0) on the next micro-batches, with learning rate `rate`.

    Returns the summed loss () of each of this rank's micro-batches, what they count, and the norm
    () of the whole gradient, on the device and not yet read. On the CPU, NonFinite before a step
    that would poison the weights.
    """
    losses, count = settings.accumulate(ddp_model, task, batches, settings, step)
    settings.scaler.unscale_(optimizer)
    norm = clip(optimizer, settings.clip_norm)
    if settings.device.type == "cpu" and not settings.scaler.is_enabled():
        require_finite(norm, step, losses)
    set_learning_rate(optimizer, rate)
    settings.scaler.step(optimizer)  # skips the step when the gradient overflowed
    settings.scaler.update()
    forget_gradients(optimizer)
    return losses, count, norm


def clip(optimizer: Optimizer, max_norm: float | None) -> Tensor:
    """The norm () of the whole gradient, which is scaled down to `max_norm` when longer."""
    parts = gradients(optimizer)
    # torch's get_total_norm, without sorting the gradients by device: they are on one.
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts)))
    if max_norm is not None:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(parts, factor)
    return norm


def require_finite(norm: Tensor, step: int, losses: Sequence[Tensor]) -> None:
    """Raise NonFinite naming the step (from 1), and the ranks whose `losses` () are not finite,
    unless the gradient norm is finite.

    DDP has made the gradient the same on every rank, so all ranks raise together.
    """
    value = float(norm)
    if not math.isfinite(value):
        raise not_finite(step, value, losses)


def not_finite(step: int, norm: float, losses: Sequence[Tensor]) -> NonFinite:
    """The error for step `step` (from 0), its gradient's norm and this rank's `losses` () in it; a
    collective."""
    broken = (~torch.stack(list(losses)).isfinite()).sum()
    return NonFinite(
        f"step {step + 1}: the gradient norm is {norm}; {whose(broken)}; the step was not taken. "
        "The last checkpoint is from before it: lower optim.lr, set optim.clip_norm, "
        "or look at the samples of this step"
    )


def whose(broken: Tensor) -> str:
    """On which ranks the loss was not finite, `broken` () times on this one; a collective."""
    counts = gather_rows(broken.reshape(1)).flatten()
    ranks = counts.nonzero().flatten().tolist()
    if not ranks:
        return "the loss was finite on every rank"
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    who = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{more}"
    return f"the loss was not finite on {who}"


def warm_up(
    ddp_model: Wrapped,
    task: Trains,
    batch: Batch,
    settings: StepSettings,
    passes: int = 2,
) -> None:
    """Throw-away synchronised passes after which DDP's gradient buckets have their final layout.

    DDP regroups its buckets after the first backward of a process (after the second with
    `static_graph`), and the order of a sum over three ranks depends on a gradient's place in its
    bucket: without this a resumed process would take its first step in another layout than the
    unbroken run did. Gradients and buffers are put back as they were. Exact mode and a process that
    is alone have no buckets.
    """
    if settings.accumulate is exact or settings.world_size == 1:
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
