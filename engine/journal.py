"""What the steps come to: counted at each on every rank, read and told when a row is due."""

from collections.abc import Generator
from typing import TypeVar

from torch import Tensor

from configs.schema import Config
from ddp import watch
from engine.cursor import Cursor
from engine.evaluate import Evaluation
from engine.flops import Flops
from engine.gradient import Count, MicroBatch, StepSettings
from engine.meter import Meter, Row
from engine.pace import Pace
from engine.progress import Progress

M = TypeVar("M", bound=MicroBatch)


class Journal:
    """Losses, pace and progress between one metrics row and the next."""

    def __init__(
        self,
        config: Config,
        settings: StepSettings,
        cursor: Cursor,
        progress: Progress,
        flops: Flops | None,
        *,
        carries: bool,
    ) -> None:
        """`carries`: this rank holds for all what the checkpoint carried."""
        skipped = config.faults.max_skipped_steps
        self._meter = Meter(settings, skipped, cursor.meter, carries=carries)
        self._pace = Pace(settings.device, cursor.step, flops)
        self._progress = progress
        self._every_steps = config.log.every_steps

    def counting(self, batches: Generator[M]) -> Generator[M]:
        """`batches`: the wait for each and its unreadable samples are counted and watched."""
        return self._meter.counting(watch.marked(self._pace.timed(batches), "data", "step"))

    def step(self, step: int, losses: list[Tensor], count: Count, norm: Tensor) -> None:
        """Count step `step` (from 0), which ended now, by what `train_step` returned."""
        self._meter.add(step, losses, count, norm)
        watch.mark(step=step + 1)
        self._progress.step()

    def is_due(self, cursor: Cursor) -> bool:
        """Whether a row is due by the number of steps; one with an evaluation waits for it."""
        return cursor.step % self._every_steps == 0 and not cursor.owes_evaluation

    def row(self, cursor: Cursor, rate: float, stall_s: float, found: Evaluation | None) -> Row:
        """The metrics row of the steps since the last one, shown to the person; a collective.

        `rate`: the last step's learning rate; `stall_s`: seconds that saving has held up the loop;
        `found`: the evaluation at the cursor.
        """
        row = self._meter.row(cursor, rate, stall_s)
        row["clock"] |= self._pace.over_ranks(row)
        if found:
            row["eval"] = found.metrics
        self._progress.tell(row)
        return row

    def note_in(self, cursor: Cursor) -> None:
        """Leave in the cursor what the next row already holds; a collective.

        NonFinite if a step was not finite: nothing of it reaches a checkpoint.
        """
        cursor.meter = self._meter.totals()

    def restart_clock(self) -> None:
        """Leave out of the clock what happened since the last step: an evaluation, a checkpoint."""
        self._meter.restart_clock()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._progress.close()
