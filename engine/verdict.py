"""Which steps had no finite gradient, and when that ends the run."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.amp import GradScaler

from engine.step import NonFinite, not_finite, whose

log = logging.getLogger(__name__)


class Verdicts:
    """Judges each step once, in order, by its gradient's norm; the same on every rank.

    Without loss scaling a norm that is not finite ends the run. GradScaler skips such a step and
    lowers its scale, as a matter of course in the first steps: it is counted, and only
    `most_skipped` of them in a row end the run.
    """

    def __init__(self, scaler: GradScaler, most_skipped: int, carried: dict[str, int]) -> None:
        """`carried`: `counts` of a checkpoint."""
        self._scaler = scaler
        self._most = most_skipped
        self._skipped = carried.get("skipped", 0)
        self._in_a_row = carried.get("in_a_row", 0)
        self._last = -1  # the newest step judged

    def judge(self, step: int, norm: float, losses: Sequence[Tensor]) -> None:
        """Count step `step` (from 0), in which this rank had `losses` (); NonFinite when the run
        must not go on."""
        self._last = step
        if math.isfinite(norm):
            self._in_a_row = 0
            return
        if not self._scaler.is_enabled():
            raise not_finite(step, norm, losses)
        self._skipped += 1
        self._in_a_row += 1
        log.info("step %d skipped: its gradient overflowed in fp16", step + 1)
        if self._in_a_row >= self._most:
            raise NonFinite(
                f"step {step + 1}: {self._in_a_row} steps in a row overflowed in fp16 and were "
                "skipped (faults.max_skipped_steps); train.precision=bf16 has no such limit, a "
                "lower optim.lr or optim.clip_norm may help"
            )

    def judge_loss(self, of_all: int, broken: Tensor) -> None:
        """NonFinite when a loss was not finite up to the last step judged: how many were on all
        ranks, and on this one."""
        if of_all:
            raise NonFinite(
                f"{whose(broken)} by step {self._last + 1}, before any scaling; the last "
                "checkpoint is from before it: lower optim.lr, or look at the samples of these "
                "steps"
            )

    def counts(self) -> dict[str, int]:
        """What a checkpoint carries; nothing without loss scaling."""
        if not self._scaler.is_enabled():
            return {}
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def told(self) -> dict[str, Any]:
        """The loss scale and the steps skipped in the whole run, for a metrics row."""
        if not self._scaler.is_enabled():
            return {}
        return {"loss_scale": self._scaler.get_scale(), "skipped_steps": self._skipped}
