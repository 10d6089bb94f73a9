"""Sums over shards in one fixed binary tree, whatever number of processes holds the shards.

Floating-point addition is commutative but not associative: equal bits need equal brackets. The
shards of the global batch are the leaves of a binary tree; a rank holds an aligned block of them,
a whole subtree, and two subtrees of equal height are always added to each other.
(EasyScale, SC 2023, fixes virtual ranks to the same end.)
"""

import torch
import torch.distributed as dist
from torch import Tensor

from ddp.collectives import world_size


class TreeSum:
    """Adds up equal-height subtrees as leaves arrive, in order; holds log2(leaves) vectors."""

    def __init__(self) -> None:
        self._subtrees: list[tuple[int, Tensor]] = []  # (height, sum), heights falling

    def add(self, leaf: Tensor) -> None:
        """Take the next leaf (N,); it is overwritten."""
        height = 0
        while self._subtrees and self._subtrees[-1][0] == height:
            _, earlier = self._subtrees.pop()
            leaf = earlier.add_(leaf)
            height += 1
        self._subtrees.append((height, leaf))

    def total(self) -> Tensor:
        """The sum (N,) of a power of two of leaves."""
        ((_, total),) = self._subtrees
        return total


def tree_sum_over_ranks(mine: Tensor) -> Tensor:
    """The sum of every rank's `mine` (N,), in place, bracketed as a binary tree over the ranks.

    Recursive doubling: in round k a rank exchanges its sum with the rank whose number differs in
    bit k, so both hold the same sum of 2**(k+1) ranks. The world size is a power of two.
    """
    ranks, distance = world_size(), 1
    theirs = torch.empty_like(mine) if ranks > 1 else mine
    while distance < ranks:
        partner = dist.get_rank() ^ distance
        exchange = [
            dist.P2POp(dist.isend, mine, partner),
            dist.P2POp(dist.irecv, theirs, partner),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        mine.add_(theirs)
        distance *= 2
    return mine
