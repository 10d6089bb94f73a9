"""What the training steps since the last row add up to, and how fast they went."""

import math
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddp.collectives import sum_over_ranks
from engine.cursor import Cursor
from engine.gradient import MicroBatch, StepSettings
from engine.verdict import Verdicts
from utils.fixed import from_fixed, to_fixed, without_broken

Row = dict[str, Any]

M = TypeVar("M", bound=MicroBatch)

_MOST_HELD = 256  # losses held before they are added up


class Meter:
    """Adds up losses on the device; reads them only when a row or a checkpoint is due.

    The sums are integers (the loss in units of 2**-32), so that they are the same bits however the
    steps were divided among ranks, rows and restarts.
    """

    def __init__(
        self, settings: StepSettings, most_skipped: int, carried: dict[str, Any], *, carries: bool
    ) -> None:
        """`carried`: `totals` of a checkpoint, which one rank (`carries`) holds for all."""
        names = ("loss", "count", "bad_images")
        sums = [carried.get(name, 0) if carries else 0 for name in names] + [0]
        self._sums = torch.tensor(sums, dtype=torch.int64, device=settings.device)
        self._loss, self._count, self._bad, self._broken = self._sums.unbind()
        self._verdicts = Verdicts(settings.scaler, most_skipped, carried)
        self._losses: list[Tensor] = []  # not in the sums yet
        self._counts: list[Tensor | int] = []
        self._norms: list[tuple[int, Tensor, list[Tensor]]] = []  # of the steps not judged yet
        self._norm: float | None = carried.get("norm")  # of the last step; None: not finite
        self._bad_images = 0
        self._steps, self._busy_s = 0, 0.0
        self._since = time.perf_counter()

    def counting(self, batches: Generator[M]) -> Generator[M]:
        """`batches`, whose samples that could not be read are counted."""
        with closing(batches):
            for piece in batches:
                self._bad_images += piece.skipped
                yield piece

    def add(self, step: int, losses: list[Tensor], count: Tensor | int, norm: Tensor) -> None:
        """Count step `step` (from 0), which ended now: the summed loss () of each of this rank's
        micro-batches, what they count, and the norm () of the whole gradient."""
        self._losses += losses
        self._counts.append(count)
        self._norms.append((step, norm, losses))
        if len(self._losses) >= _MOST_HELD:
            self._fold()
        now = time.perf_counter()
        self._steps += 1
        self._busy_s += now - self._since
        self._since = now

    def _fold(self) -> None:
        """Add what is held to the sums: once for many steps, as each operation costs some us."""
        if not self._losses:
            return
        units, broken = without_broken(to_fixed(torch.stack(self._losses)))
        self._loss += units.sum()
        self._count += sum(self._counts)
        self._bad += self._bad_images
        self._broken += broken
        self._losses, self._counts, self._bad_images = [], [], 0

    def restart_clock(self) -> None:
        """Leave out of the clock what happened since the last step: an evaluation, a checkpoint."""
        self._since = time.perf_counter()

    def totals(self) -> dict[str, Any]:
        """The sums over all ranks and what else goes into a checkpoint; a collective.

        Raises NonFinite if a step was not finite.
        """
        self._fold()
        loss, count, bad_images, broken = sum_over_ranks(self._sums.clone()).tolist()
        if self._norms:
            steps, norms, losses = zip(*self._norms, strict=True)
            values = torch.stack(norms).tolist()
            for step, norm, of_step in zip(steps, values, losses, strict=True):
                self._verdicts.judge(step, norm, of_step)
            self._verdicts.judge_loss(broken, self._sums[3], steps[-1] + 1)
            self._norm, self._norms = values[-1] if math.isfinite(values[-1]) else None, []
        sums = {"loss": loss, "count": count, "bad_images": bad_images}
        return {**sums, "norm": self._norm, **self._verdicts.counts()}

    def row(self, cursor: Cursor, rate: float, stall_s: float) -> Row:
        """A metrics row of the steps since the last one; a collective. Starts anew.

        What depends on time is under `clock` alone, all else is the same bits in every repeat.
        """
        totals = self.totals()
        images_per_s = self._steps * (cursor.samples / cursor.step) / max(1e-9, self._busy_s)
        row = {
            "step": cursor.step,
            "epoch": cursor.epoch,
            "samples": cursor.samples,
            "train": {
                "loss": from_fixed(totals["loss"]) / max(1, totals["count"]),
                "lr": rate,
                "grad_norm": self._norm,
                **({"bad_images": totals["bad_images"]} if totals["bad_images"] else {}),
                **self._verdicts.told(),
            },
            "clock": {
                "step_s": round(self._busy_s / max(1, self._steps), 6),
                "images_per_s": round(images_per_s, 1),
                "save_stall_s": round(stall_s, 6),
            },
        }
        self._sums.zero_()
        self._steps, self._busy_s = 0, 0.0
        return row
