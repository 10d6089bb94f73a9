"""The wrapping: rank 0's weights reach every rank, and every rank shows that it has them."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp.collectives import (
    broadcast_from_rank0,
    gather_rows,
    same_on_all_ranks,
    world_size,
)
from ddp.rehearsal import average_with_twins, is_rehearsal
from utils.errors import BadInput

# torch's own size, but from the first bucket on: its first one, of 1 MiB, is to be on its way
# early, and on a CPU gloo takes the processors from the backward pass for it, 0.3 ms a bucket.
_CPU_BUCKET_MB = 25.0


class Alone(nn.Module):
    """DDP's part where there is one process: nobody to average with.

    torch's DDP would still copy all gradients into buckets and sum them over a group of one.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        """As DDP's; nothing is ever synchronised."""
        return nullcontext()


Wrapped = DistributedDataParallel | Alone


class Disagreement(RuntimeError):
    """Ranks hold different weights: names the tensors and the ranks."""

    exit_code = 1


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with its name, persistent or not, in the module's own order."""
    yield from module.named_parameters()
    yield from module.named_buffers()


class WrapOptions(Protocol):
    """DDP's own options, as `ddp` of a configuration holds them."""

    @property
    def sync_batchnorm(self) -> bool: ...
    @property
    def find_unused_parameters(self) -> bool: ...
    @property
    def static_graph(self) -> bool: ...
    @property
    def gradient_as_bucket_view(self) -> bool: ...
    @property
    def bucket_cap_mb(self) -> float | None: ...


def require_devices(options: WrapOptions) -> None:
    """BadInput when an option needs GPUs and there are none."""
    if options.sync_batchnorm and not torch.cuda.is_available():
        raise BadInput(
            "ddp.sync_batchnorm: torch has SyncBatchNorm for GPUs only; on CPUs leave it false "
            "(statistics are then each process's own, from its share of the batch)"
        )


def wrap(model: nn.Module, options: WrapOptions, *, compiled: bool = False) -> Wrapped:
    """`model` under DDP, with rank 0's parameters and buffers on every rank.

    The broadcast is ours, one tensor after another, and DDP's constructor is told not to repeat it:
    it would first copy everything into flat buffers. `model` is changed in place and stays
    `.module`: `compiled` compiles its forward without a wrapper that would rename its parameters,
    one graph for each batch size, whatever sizes came before. Raises Disagreement.
    """
    check_same_architecture(model)
    broadcast_from_rank0(tensor for _, tensor in tensors_of(model))
    if options.sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if compiled:
        model.compile(dynamic=False)
    if world_size() == 1:
        return Alone(model)
    on_cpu = next(model.parameters()).device.type == "cpu"
    ddp_model = DistributedDataParallel(
        model,
        init_sync=False,
        find_unused_parameters=options.find_unused_parameters,
        static_graph=options.static_graph,
        gradient_as_bucket_view=options.gradient_as_bucket_view,
        bucket_cap_mb=options.bucket_cap_mb or (_CPU_BUCKET_MB if on_cpu else None),
    )
    if is_rehearsal():
        average_with_twins(ddp_model)
    return ddp_model


def check_same_architecture(model: nn.Module) -> None:
    """Raise Disagreement when names, shapes or types differ between ranks, before any broadcast."""
    described = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors_of(model)]
    digest = hashlib.sha256("\n".join(described).encode()).digest()
    if not same_on_all_ranks(_as_numbers(digest)):
        counts = gather_rows(torch.tensor([len(described)])).flatten().tolist()
        raise Disagreement(
            "the ranks built different models (tensors per rank: "
            f"{counts}); do all hosts run the same code and configuration?"
        )


def agreement(model: nn.Module) -> str:
    """The line that says that all ranks hold the same bits; Disagreement when they do not."""
    named = list(tensors_of(model))
    digests = [hashlib.sha256(_bytes_of(tensor)).digest() for _, tensor in named]
    overall = hashlib.sha256(b"".join(digests))
    if not same_on_all_ranks(_as_numbers(overall.digest())):
        raise Disagreement(_who_differs(named, digests))
    ranks = world_size()
    who = f"{ranks} ranks agree" if ranks > 1 else "1 rank"
    return f"{who} on {len(named)} tensors: {overall.hexdigest()[:16]}"


def _who_differs(named: list[tuple[str, Tensor]], digests: list[bytes]) -> str:
    """Tensors that differ from rank 0's, with the ranks that differ and whether they hold NaN."""
    heads = torch.stack([_as_numbers(digest)[0] for digest in digests])
    has_nan = torch.tensor([int(_has_nan(tensor)) for _, tensor in named])
    all_heads, all_nans = gather_rows(heads), gather_rows(has_nan)
    lines = []
    for index, (name, _) in enumerate(named):
        ranks = (all_heads[:, index] != all_heads[0, index]).nonzero().flatten().tolist()
        if ranks:
            nan = [rank for rank in ranks if all_nans[rank, index]]
            never = f"; NaN on {nan}: rank 0's values never arrived there" if nan else ""
            lines.append(f"  {name}: ranks {ranks} differ from rank 0{never}")
    shown = "\n".join(lines[:8]) + (f"\n  and {len(lines) - 8} more" if len(lines) > 8 else "")
    return f"the ranks hold different weights in {len(lines)} tensors:\n{shown}"


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isnan().any())


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()


def _as_numbers(digest: bytes) -> Tensor:
    """A sha256 as four int64 whose negation cannot overflow."""
    return torch.from_numpy(np.frombuffer(digest, dtype=np.int64) >> 1)
