"""Sums over shards in one fixed binary tree, whatever number of processes holds the shards.

Floating-point addition is commutative but not associative: equal bits need equal brackets. The
shards of the global batch are the leaves of a binary tree; a rank holds an aligned block of them,
a whole subtree, and two subtrees of equal height are always added to each other.
(EasyScale, SC 2023, fixes virtual ranks to the same end.)
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ddp.collectives import broadcast_from_rank0, exchange, world_size


class TreeSum:
    """Adds up equal-height subtrees as leaves arrive, in order; holds at most log2(leaves) + 1."""

    def __init__(self) -> None:
        self._subtrees: list[tuple[int, list[Tensor]]] = []  # (height, sums), heights falling

    def add(self, leaf: list[Tensor]) -> None:
        """Take the next leaf, a list of tensors of the same shapes each time; overwrites them."""
        height = 0
        while self._subtrees and self._subtrees[-1][0] == height:
            _, earlier = self._subtrees.pop()
            torch._foreach_add_(earlier, leaf)
            leaf = earlier
            height += 1
        self._subtrees.append((height, leaf))

    def total(self) -> list[Tensor]:
        """The sums of a power of two of leaves."""
        ((_, total),) = self._subtrees
        return total


def tree_sum_over_ranks(mine: Sequence[Tensor]) -> None:
    """Add every rank's `mine`, in place, bracketed as a binary tree over the ranks.

    The tensors keep their places and layouts, so that whatever is computed from them next meets the
    same memory on every world size, a power of two.
    """
    if world_size() == 1:
        return
    for dtype in sorted({tensor.dtype for tensor in mine}, key=str):
        of_type = [tensor for tensor in mine if tensor.dtype == dtype]
        flat = _doubled(torch.cat([tensor.reshape(-1) for tensor in of_type]))
        parts = torch.split(flat, [tensor.numel() for tensor in of_type])
        shaped = [part.view(tensor.shape) for part, tensor in zip(parts, of_type, strict=True)]
        torch._foreach_copy_(of_type, shaped)


def _doubled(mine: Tensor) -> Tensor:
    """The sum of every rank's `mine` (N,), in place, by recursive doubling.

    In round k a rank exchanges its sum with the rank whose number differs in bit k; both then hold
    the same sum of 2**(k+1) ranks.
    """
    theirs = torch.empty_like(mine)
    distance = 1
    while distance < world_size():
        exchange(mine, theirs, dist.get_rank() ^ distance)
        mine.add_(theirs)
        distance *= 2
    return mine


def rank0s(tensors: Sequence[Tensor]) -> None:
    """Overwrite the tensors, in place, with rank 0's: packed into one message, as this is done in
    every step."""
    if world_size() == 1 or not tensors:
        return
    packed = torch.cat([tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors])
    broadcast_from_rank0([packed])
    parts = torch.split(packed, [tensor.nbytes for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        # A copy, since a part may begin where no number of its type can.
        tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))
