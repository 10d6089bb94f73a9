"""What the training steps since the last row add up to, and how fast they went."""

import time

import torch
from torch import Tensor

from ddp.collectives import sum_over_ranks
from engine.step import require_finite
from utils.fixed import from_fixed, to_fixed


class Meter:
    """Adds up losses on the device; reads them only when a row or a checkpoint is due.

    The sum is an integer (units of 2**-32), so that it is the same bits however the steps were
    divided among ranks, rows and restarts; `state` is its part of a checkpoint's cursor.
    """

    def __init__(self, device: torch.device, state: dict[str, int], *, holds_state: bool) -> None:
        # One rank carries what was summed over all ranks before a restart.
        carried = [state.get("loss", 0), state.get("samples", 0)] if holds_state else [0, 0]
        self._sums = torch.tensor(carried, dtype=torch.int64, device=device)
        self._norms: list[tuple[int, Tensor]] = []

    def add(self, step: int, loss_sum: Tensor, samples: int, norm: Tensor) -> None:
        """Count step `step` (from 0): this rank's summed loss () and samples, the gradient norm ()."""
        self._sums[0] += to_fixed(loss_sum)
        self._sums[1] += samples
        self._norms.append((step, norm))

    def totals(self) -> dict[str, int]:
        """The sums over all ranks; a collective. Raises NonFinite if a step was not."""
        for step, norm in self._norms:
            require_finite(norm, step)
        self._norms = self._norms[-1:]
        loss, samples = sum_over_ranks(self._sums.clone()).tolist()
        return {"loss": loss, "samples": samples}

    def row(self, rate: float) -> dict[str, float]:
        """`train` of a metrics row (mean loss since the last row, lr, last norm); starts anew."""
        totals = self.totals()
        norm = float(self._norms[-1][1])
        self._sums.zero_()
        self._norms = []
        loss = from_fixed(totals["loss"]) / totals["samples"]
        return {"loss": loss, "lr": rate, "grad_norm": norm}


class Clock:
    """Seconds and images a second since the last look, evaluation and saving left out."""

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._busy_s = 0.0
        self._steps = 0
        self._since = time.perf_counter()

    def step_done(self) -> None:
        """Count one step that ended now."""
        now = time.perf_counter()
        self._busy_s += now - self._since
        self._since = now
        self._steps += 1

    def restart(self) -> None:
        """Leave out what happened since the last step."""
        self._since = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Seconds a step and images a second (over all ranks) since the last read."""
        steps, busy = max(1, self._steps), max(1e-9, self._busy_s)
        self._steps, self._busy_s = 0, 0.0
        return {
            "seconds_per_step": busy / steps,
            "images_per_second": steps * self._global_batch / busy,
        }
