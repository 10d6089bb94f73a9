"""What the training steps since the last row add up to, and how fast they went."""

import math
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddp.collectives import sum_over_ranks, world_size
from engine.cursor import Cursor
from engine.gradient import Count, MicroBatch, StepSettings
from engine.verdict import Verdicts
from utils.fixed import fixed, from_fixed

Row = dict[str, Any]

M = TypeVar("M", bound=MicroBatch)

_MOST_HELD = 256  # losses left on the device before they are read
_MOST_UNITS = 2**62  # a sum of all ranks that is still an int64


class Meter:
    """Leaves losses on the device, and reads them only when a row or a checkpoint is due.

    The sums are integers (the loss in units of 2**-32), so that they are the same bits however the
    steps were divided among ranks, rows and restarts.
    """

    def __init__(
        self, settings: StepSettings, most_skipped: int, carried: dict[str, Any], *, carries: bool
    ) -> None:
        """`carried`: `totals` of a checkpoint, which one rank (`carries`) holds for all."""
        mine = carried if carries else {}
        self._loss: int = mine.get("loss", 0)
        self._count: Count = mine.get("count", 0)
        self._bad_images: int = mine.get("bad_images", 0)
        self._broken = 0  # losses that were not finite
        self._losses: list[Tensor] = []  # not read yet
        self._verdicts = Verdicts(settings.scaler, most_skipped, carried)
        self._steps_to_judge: list[tuple[int, Tensor, list[Tensor]]] = []  # norm, own losses
        self._norm: float | None = carried.get("norm")  # of the last step; None: not finite
        self._steps, self._busy_s = 0, 0.0
        self._since = time.perf_counter()

    def counting(self, batches: Generator[M]) -> Generator[M]:
        """`batches`, whose samples that could not be read are counted."""
        with closing(batches):
            for piece in batches:
                self._bad_images += piece.skipped
                yield piece

    def add(self, step: int, losses: list[Tensor], count: Count, norm: Tensor) -> None:
        """Count step `step` (from 0), which ended now: the summed loss () of each of this rank's
        micro-batches, what they count, and the norm () of the whole gradient."""
        self._losses += losses
        self._count = self._count + count
        self._steps_to_judge.append((step, norm, losses))
        if len(self._steps_to_judge) >= _MOST_HELD:
            self._read()
            self._judge()
        now = time.perf_counter()
        self._steps += 1
        self._busy_s += now - self._since
        self._since = now

    def _read(self) -> None:
        """Add the losses that are left to the sums; waits for the device, once for many steps."""
        if not self._losses:
            return
        units = [fixed(loss) for loss in torch.stack(self._losses).tolist()]
        self._loss += sum(unit for unit in units if unit is not None)
        self._broken += units.count(None)
        self._losses = []

    def _judge(self) -> None:
        """Look at the gradient of each step since the last look, the same on every rank."""
        if not self._steps_to_judge:
            return
        steps, norms, losses = zip(*self._steps_to_judge, strict=True)
        values = torch.stack(norms).tolist()
        for step, norm, of_step in zip(steps, values, losses, strict=True):
            self._verdicts.judge(step, norm, of_step)
        self._norm = values[-1] if math.isfinite(values[-1]) else None
        self._steps_to_judge = []

    def restart_clock(self) -> None:
        """Leave out of the clock what happened since the last step: an evaluation, a checkpoint."""
        self._since = time.perf_counter()

    def totals(self) -> dict[str, Any]:
        """The sums over all ranks and what else goes into a checkpoint; a collective.

        Raises NonFinite if a step was not finite.
        """
        self._read()
        most = _MOST_UNITS // world_size()
        loss = max(-most, min(self._loss, most))
        mine = torch.tensor([loss, int(self._count), self._bad_images, self._broken])
        loss, count, bad_images, broken = sum_over_ranks(mine).tolist()
        self._judge()
        self._verdicts.judge_loss(broken, torch.tensor(self._broken))
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
        self._loss, self._count, self._bad_images, self._broken = 0, 0, 0, 0
        self._steps, self._busy_s = 0, 0.0
        return row
