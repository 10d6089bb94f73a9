"""Sums that do not depend on their order: real numbers as integer multiples of 2**-32.

Floating-point sums change in the last bits with the number of ranks, batches and restarts;
integer sums do not. A loss keeps a resolution of 2.3e-10, and a sum over all ranks may reach 1e9.
"""

import math

import torch
from torch import Tensor

_UNIT = 2.0**32
BROKEN = -(2**61)  # a few of them together do not overflow


def fixed(value: float) -> int | None:
    """`value` in units of 2**-32; None when it is not finite."""
    return round(value * _UNIT) if math.isfinite(value) else None


def to_fixed(value: Tensor) -> Tensor:
    """`value` in units of 2**-32: float of any shape -> int64 of the same shape.

    What is not finite becomes BROKEN, which no sum of real losses reaches.
    """
    units = (value.detach().double() * _UNIT).round_()
    return torch.where(units.isfinite(), units, BROKEN).to(torch.int64)


def without_broken(units: Tensor) -> tuple[Tensor, Tensor]:
    """(`units` with 0 where they are BROKEN, how many are), int64: both may be added up."""
    broken = units == BROKEN
    return units.masked_fill(broken, 0), broken.sum()


def from_fixed(units: int) -> float:
    """The real number of `units` times 2**-32."""
    return units / _UNIT
