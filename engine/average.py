"""The averaged weights of a run: an exponential moving average by half-life in samples."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ddp.collectives import broadcast_from_rank0
from ddp.rank0 import on_rank0


class Average:
    """avg <- decay * avg + (1 - decay) * weights after every step, buffers included.

    decay = 0.5 ** (global_batch / half_life): what a sample put into the average has halved after
    `half_life` more samples, whatever the batch size. Starts from the weights as they are.
    Integer buffers (counters) are copied. Without a half-life, `model` is the live model itself.
    """

    def __init__(self, model: nn.Module, half_life: float | None, global_batch: int) -> None:
        self.model = model
        self.kept = half_life is not None
        if half_life is None:
            return
        self._gain = 1.0 - 0.5 ** (global_batch / half_life)
        self.model = copy.deepcopy(model).requires_grad_(False)
        live = [*model.parameters(), *model.buffers()]
        mine = [*self.model.parameters(), *self.model.buffers()]
        real = [tensor.is_floating_point() for tensor in live]
        self._live = [t.detach() for t, is_real in zip(live, real, strict=True) if is_real]
        self._mine = [t.detach() for t, is_real in zip(mine, real, strict=True) if is_real]
        self._counters = [
            (own, theirs)
            for own, theirs, is_real in zip(mine, live, real, strict=True)
            if not is_real
        ]

    def update(self) -> None:
        """Count the weights that a step ended in; one list operation, nothing is read."""
        if not self.kept:
            return
        torch._foreach_lerp_(self._mine, self._live, self._gain)
        for own, theirs in self._counters:
            own.copy_(theirs)

    def receive(self, saved: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint's average (rank 0's, None elsewhere) on every rank; a collective.

        A checkpoint without one leaves the weights that the average begins with.
        """
        if not self.kept:
            return
        on_rank0(self._load, saved)
        broadcast_from_rank0([*self.model.parameters(), *self.model.buffers()])

    def _load(self, saved: Mapping[str, Any] | None) -> None:
        if saved:
            self.model.load_state_dict(saved)
