"""Randomness as a function: the same integers in, the same numbers out, on any rank, at any time.

The mixing function is the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), chained over the words of a key.
"""

import numpy as np
from numpy.typing import NDArray

Words = int | NDArray[np.integer]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_INTEGERS = (int(_GOLDEN), int(_MIX_1), int(_MIX_2))
_MASK = (1 << 64) - 1


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def mix(*words: Words) -> NDArray[np.uint64]:
    """A uint64 hash of integers and integer arrays, broadcast together; of ints alone, ()."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            if isinstance(word, int):
                word = np.asarray(word & _MASK, dtype=np.uint64)
            state = np.asarray(_finalise((state ^ word.astype(np.uint64)) + _GOLDEN))
    return state


def uniforms(keys: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each key; keys (B,) -> (B, count) float64."""
    bits = mix(keys[:, None], np.arange(count))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of(*words: int) -> int:
    """A generator seed in [0, 2**63) that is a hash of `words`: `mix` in plain integers, which for
    one key are ten times as fast as arrays."""
    golden, mix_1, mix_2 = _INTEGERS
    state = 0
    for word in words:
        state = ((state ^ (word & _MASK)) + golden) & _MASK
        state = ((state ^ (state >> 30)) * mix_1) & _MASK
        state = ((state ^ (state >> 27)) * mix_2) & _MASK
        state ^= state >> 31
    return state >> 1
