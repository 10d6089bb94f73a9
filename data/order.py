"""Which samples, when, for whom: computed from (seed, epoch), never stored.

The order of an epoch is a keyed permutation of 0..size: a generalised Feistel network on
Z_a x Z_b with a * b just above the size (Black and Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002). A position that lands past the end is permuted again until it does not
(cycle-walking); since a * b - size < a, at most one position in b has to.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from utils.errors import BadInput
from utils.keyed import mix

Indices = NDArray[np.int64]
_Words = NDArray[np.uint64]
_Network = Callable[[_Words], _Words]

_ROUNDS = 8  # with six, sizes under ten show unevenly often in pairs; from seven up eight does not
_CHUNK = 8192  # positions at a time: the temporaries stay in a core's cache
_HALF = np.uint64(32)
_MULTIPLIER_1 = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_2 = np.uint64(0xD6E8FEB86659FD93)


def _scramble(words: _Words, key: np.uint64, bound: np.uint64) -> _Words:
    """A keyed hash of each word, in [0, bound) for a bound up to 2**32."""
    state = words ^ key
    state *= _MULTIPLIER_1
    state ^= state >> _HALF
    state *= _MULTIPLIER_2
    state >>= _HALF
    state *= bound  # the high half of a 32 x 32 bit product: [0, bound) without a division
    state >>= _HALF
    return state


class Permutation:
    """A bijection of 0..size (up to 2**62) chosen by `key`, in O(1) memory, with its inverse."""

    def __init__(self, size: int, key: int) -> None:
        assert 1 <= size <= 2**62
        left = math.isqrt(size - 1) + 1
        self._size = size
        self._left, self._right = np.uint64(left), np.uint64(-(-size // left))
        self._keys = mix(key, np.arange(_ROUNDS))

    def __call__(self, positions: Indices) -> Indices:
        """The sample at each position; (n,) int64 in [0, size) -> (n,) int64."""
        return self._walk(positions, self._forward)

    def inverse(self, samples: Indices) -> Indices:
        """The position of each sample; (n,) int64 in [0, size) -> (n,) int64."""
        return self._walk(samples, self._backward)

    def _walk(self, start: Indices, network: _Network) -> Indices:
        result = np.empty(len(start), dtype=np.int64)
        for low in range(0, len(start), _CHUNK):
            words = network(start[low : low + _CHUNK].astype(np.uint64))
            outside = np.flatnonzero(words >= self._size)
            while len(outside):
                words[outside] = network(words[outside])
                outside = outside[words[outside] >= self._size]
            result[low : low + _CHUNK] = words.view(np.int64)
        return result

    def _forward(self, words: _Words) -> _Words:
        right = words // self._left
        left = words - right * self._left
        for even, odd in self._keys.reshape(-1, 2):
            left += _scramble(right, even, self._left)
            left -= self._left * (left >= self._left)
            right += _scramble(left, odd, self._right)
            right -= self._right * (right >= self._right)
        return right * self._left + left

    def _backward(self, words: _Words) -> _Words:
        right = words // self._left
        left = words - right * self._left
        for even, odd in self._keys.reshape(-1, 2)[::-1]:
            right += self._right - _scramble(left, odd, self._right)
            right -= self._right * (right >= self._right)
            left += self._left - _scramble(right, even, self._left)
            left -= self._left * (left >= self._left)
        return right * self._left + left


def share(global_batch: int, rank: int, world_size: int) -> range:
    """The positions inside a global batch that belong to `rank`: its contiguous part."""
    if global_batch % world_size:
        fitting = [str(n) for n in range(1, global_batch + 1) if global_batch % n == 0]
        below = global_batch - global_batch % world_size
        around = f"{below} or {below + world_size}" if below else str(world_size)
        raise BadInput(
            f"train.global_batch: {global_batch} cannot be divided by {world_size} processes; "
            f"it can by {', '.join(fitting)}; or set train.global_batch to {around}"
        )
    per_rank = global_batch // world_size
    return range(rank * per_rank, (rank + 1) * per_rank)


class TrainOrder:
    """The samples of every optimizer step of a run, the same however many processes share them.

    Epoch e is steps `e * steps_per_epoch` up to the next; the tail of an epoch's permutation that
    does not fill a global batch is dropped.
    """

    def __init__(self, size: int, global_batch: int, seed: int) -> None:
        """`size` samples, `global_batch` of them a step; BadInput if they do not fill one."""
        if size < global_batch:
            raise BadInput(
                f"the dataset has {size} training samples, fewer than one global batch of "
                f"{global_batch}; lower train.global_batch"
            )
        self.size, self.global_batch, self.seed = size, global_batch, seed
        self.steps_per_epoch = size // global_batch
        self._epoch, self._permutation = -1, Permutation(1, 0)

    def samples(self, step: int, rank: int, world_size: int) -> tuple[int, Indices]:
        """The epoch of `step` and rank's share of its samples, (global_batch / world_size,)."""
        part = share(self.global_batch, rank, world_size)
        return step // self.steps_per_epoch, self.table(step, 1, part)[0]

    def table(self, step: int, steps: int, part: range) -> Indices:
        """The samples at positions `part` of the global batches of `steps` steps of one epoch.

        Returns (steps, len(part)) int64. Many steps in one call cost a fraction of as many calls.
        """
        epoch, first = divmod(step, self.steps_per_epoch)
        assert first + steps <= self.steps_per_epoch
        starts = np.arange(first, first + steps, dtype=np.int64) * self.global_batch
        positions = starts[:, None] + np.arange(part.start, part.stop, dtype=np.int64)
        return self._order(epoch)(positions.ravel()).reshape(positions.shape)

    def step_of(self, epoch: int, sample: int) -> int | None:
        """The step of `epoch` that trains on `sample`; None when it is in the dropped tail."""
        step = self._position(epoch, sample) // self.global_batch
        return None if step >= self.steps_per_epoch else epoch * self.steps_per_epoch + step

    def rank_of(self, epoch: int, sample: int, world_size: int) -> int | None:
        """The rank, of `world_size`, that trains on `sample` in `epoch`; None: the dropped tail."""
        if self.step_of(epoch, sample) is None:
            return None
        return self._position(epoch, sample) % self.global_batch * world_size // self.global_batch

    def _position(self, epoch: int, sample: int) -> int:
        return int(self._order(epoch).inverse(np.array([sample]))[0])

    def _order(self, epoch: int) -> Permutation:
        if epoch != self._epoch:
            key = int(mix(self.seed, epoch))
            self._epoch, self._permutation = epoch, Permutation(self.size, key)
        return self._permutation


def eval_batches(size: int, batch: int, rank: int, world_size: int) -> Iterator[Indices]:
    """Rank's batches of an evaluation of 0..size: batch j goes to rank j % world_size.

    The cuts are the same on every world size; the last batch is shorter; nothing is padded or
    dropped, so the parts of all ranks together are each sample once.
    """
    for start in range(rank * batch, size, world_size * batch):
        yield np.arange(start, min(start + batch, size), dtype=np.int64)
