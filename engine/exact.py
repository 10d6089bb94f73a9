"""The same bits on 1, 2, 4, ... processes: gradients of fixed shards, added in a fixed tree.

The global batch is cut into `ddp.shards` equal shards; each is one forward and backward pass from
zero gradients, from the buffers of the step's start, and from dropout keyed by its number. A rank
runs an aligned block of them, one after another. What a shard computes then depends on neither the
rank nor the world size, and neither does the tree in which the shards' gradients are added.

GradScaler fits in: one scale for all shards of a step, a power of two, and the verdict on overflow
is read from the summed gradient, which is the same bits on every world size.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from configs.schema import Config
from ddp.exact import TreeSum, rank0s, tree_sum_over_ranks
from ddp.wrap import Wrapped
from engine.gradient import (
    Count,
    MicroBatch,
    StepSettings,
    Trains,
    backward,
    counted,
    key_randomness,
    mixed_precision,
)
from utils.errors import BadInput

DEFAULT_SHARDS = 8


def forward_cap(config: Config) -> int | None:
    """Most samples of one forward on one rank: a shard in exact mode, else train.micro_batch."""
    if not config.ddp.exact:
        return config.train.micro_batch
    return config.train.global_batch // shards(config)


def shards(config: Config) -> int:
    """The number of shards of exact mode, a power of two that does not depend on the world size.

    `ddp.shards`, or else 8 or the largest power of two below it that divides the global batch, or
    as many above it as `train.micro_batch` asks for. BadInput when there is none.
    """
    batch, cap = config.train.global_batch, config.train.micro_batch
    if config.ddp.shards is not None:
        return config.ddp.shards
    count = min(DEFAULT_SHARDS, batch & -batch)
    while cap is not None and batch > count * cap and batch % (2 * count) == 0:
        count *= 2
    if cap is not None and batch > count * cap:
        raise BadInput(
            f"ddp.exact: train.global_batch={batch} cannot be cut into a power of two of equal "
            f"shards of at most train.micro_batch={cap}; raise train.micro_batch to "
            f"{batch // count}, or make train.global_batch a multiple of a higher power of two"
        )
    return count


def world_sizes(config: Config) -> list[int]:
    """The numbers of processes that can share a step; BadInput when exact mode has no shards."""
    divided = shards(config) if config.ddp.exact else config.train.global_batch
    return [n for n in range(1, divided + 1) if divided % n == 0]


def require_exact(config: Config, world_size: int) -> None:
    """BadInput when exact mode is asked for on a number of processes that cannot share the tree."""
    if not config.ddp.exact:
        return
    count = shards(config)
    if count % world_size:  # both are then powers of two
        fitting = [str(2**k) for k in range(count.bit_length()) if count % 2**k == 0]
        raise BadInput(
            f"ddp.exact: {count} shards cannot be shared by {world_size} processes; they can by "
            f"{', '.join(fitting)}; or choose another ddp.shards, a power of two"
        )


def require_own_statistics(config: Config, model: nn.Module) -> None:
    """BadInput when exact mode meets a network that adds up statistics over processes."""
    for name, module in model.named_modules():
        if config.ddp.exact and isinstance(module, nn.SyncBatchNorm):
            raise BadInput(
                f"ddp.exact: {name} is a SyncBatchNorm, whose statistics are summed over "
                "processes; use plain BatchNorm, or set ddp.exact=false"
            )


def exact(
    ddp_model: Wrapped,
    task: Trains,
    batches: Iterator[MicroBatch],
    settings: StepSettings,
    step: int,
) -> tuple[list[Tensor], Count]:
    """Leave the gradient of the mean loss in `.grad`, added in the tree; see `Accumulate`.

    The bare module runs, since DDP would sum the ranks in an order of its own. Buffers end as shard
    0 left them, on every rank. Holds log2(shards of this rank) + 1 copies of the gradient.
    """
    model = ddp_model.module
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    buffers = list(model.buffers())
    at_start = after_first = [buffer.clone() for buffer in buffers]
    pieces, count, factor = counted(task, batches, settings, 1)
    losses = []
    tree = TreeSum()
    for number in range(len(settings.micro_batches)):
        piece = next(pieces)
        key_randomness(settings, step, piece.index)
        with mixed_precision(settings):
            loss = task.loss(model, piece.batch)
        backward(loss, factor, settings)
        losses.append(loss.detach())
        tree.add([_taken(name, parameter) for name, parameter in trained])
        if number == 0:
            after_first = [buffer.clone() for buffer in buffers]
        _overwrite(buffers, at_start)
    _overwrite(buffers, after_first)
    rank0s(buffers)
    gradients = tree.total()
    tree_sum_over_ranks(gradients)
    for (_, parameter), gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    return losses, count


def _overwrite(buffers: list[Tensor], values: list[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def _taken(name: str, parameter: nn.Parameter) -> Tensor:
    """The gradient of one shard, taken off the parameter so that the next starts from none."""
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        raise BadInput(
            f"ddp.exact: {name} took no part in the loss of a shard; exact mode needs every "
            "parameter in every shard: name it in model.freeze, or set ddp.exact=false"
        )
    return gradient
