"""The collectives that the harness uses: tensors only, visible where they are called.

Each is the identity in a process that was started alone, an error where a group was promised
(WORLD_SIZE > 1) but not joined, and an error inside a rank-0 gate. In a rehearsal the other ranks
give what this one gives.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ddp.rehearsal import is_rehearsal

_gate = threading.local()  # per thread: a background thread is not inside the loop's gate


@contextmanager
def inside_gate() -> Iterator[None]:
    """What runs here runs on rank 0 alone: a collective raises instead of waiting for ever."""
    outer = getattr(_gate, "inside", False)
    _gate.inside = True
    try:
        yield
    finally:
        _gate.inside = outer


def world_size() -> int:
    """The number of processes of the group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` summed over all ranks, in place; integers, so that the order cannot matter."""
    return _reduced(values, dist.ReduceOp.SUM, "a sum over ranks")


def max_over_ranks(values: Tensor) -> Tensor:
    """The highest of each of `values` over all ranks, in place."""
    return _reduced(values, dist.ReduceOp.MAX, "a maximum over ranks")


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType, what: str) -> Tensor:
    if _joined(what) and dist.get_world_size() > 1:
        on_group = values.to(group_device())
        dist.all_reduce(on_group, op=operation)
        if operation == dist.ReduceOp.SUM and is_rehearsal():
            on_group.mul_(dist.get_world_size())
        if on_group is not values:
            values.copy_(on_group)
    return values


def await_all() -> None:
    """Return when every rank has come here."""
    sum_over_ranks(torch.ones(1, dtype=torch.int64))


def gather_rows(row: Tensor) -> Tensor:
    """The `row` (K,) of every rank, in the order of ranks: (W, K) on the CPU."""
    if not _joined("a gather"):
        return row.cpu()[None]
    row = row.to(group_device()).contiguous()
    rows = row.new_empty(world_size() * len(row))  # one tensor, however many ranks there are
    # torch 2.14 gave it another name, and warns of the old one.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(rows, row)
    return rows.view(world_size(), len(row)).cpu()


def exchange(mine: Tensor, theirs: Tensor, partner: int) -> None:
    """Overwrite `theirs` with the `mine` of rank `partner`, which does the same."""
    _joined("an exchange")
    sent_and_received = [
        dist.P2POp(dist.isend, mine, partner),
        dist.P2POp(dist.irecv, theirs, partner),
    ]
    for work in dist.batch_isend_irecv(sent_and_received):
        work.wait()
    if is_rehearsal():
        theirs.copy_(mine)


def same_on_all_ranks(values: Tensor) -> bool:
    """Whether the int64 `values` (K,) are equal on all ranks; O(K), whatever the world size."""
    if not _joined("a comparison of ranks"):
        return True
    values = values.to(group_device())
    extremes = torch.cat([values, -values])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    highest, lowest = extremes.chunk(2)
    return bool(torch.equal(highest, -lowest))


def broadcast_from_rank0(tensors: Iterable[Tensor]) -> None:
    """Overwrite every tensor, in place, with rank 0's.

    One by one rather than coalesced into flat copies: DDP's own constructor does the latter, which
    costs every rank up to 250 MiB more at its peak and saves nothing once per run.
    """
    if not _joined("a broadcast"):
        return
    for tensor in tensors:
        sent = tensor.detach()
        buffer = sent.to(group_device()).contiguous()
        dist.broadcast(buffer, src=0)
        if buffer.data_ptr() != sent.data_ptr():
            sent.copy_(buffer)


def broadcast_bytes(content: bytes) -> bytes:
    """Rank 0's `content` on every rank."""
    if not _joined("a broadcast"):
        return content
    length = torch.tensor([len(content)], device=group_device())
    dist.broadcast(length, src=0)
    size = int(length.item())
    if size == 0:
        return b""
    buffer = torch.empty(size, dtype=torch.uint8, device=group_device())
    if len(content) == size:  # rank 0's, or by chance another's, which is then overwritten
        buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(buffer, src=0)
    return bytes(buffer.cpu().numpy().tobytes())


def group_device() -> torch.device:
    """The device whose tensors the group takes: the GPU under NCCL, else the CPU."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _joined(what: str) -> bool:
    if getattr(_gate, "inside", False):
        raise RuntimeError(f"{what} inside a rank-0 gate: the other ranks would never join it")
    if dist.is_initialized():
        return True
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if promised > 1:
        raise RuntimeError(f"{what}: {promised} processes were promised, but no group was joined")
    return False
