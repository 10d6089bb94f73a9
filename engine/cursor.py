"""Where a run stands: everything about its position that cannot be computed."""

from dataclasses import asdict, dataclass, field
from typing import Any

from utils.errors import BadInput


@dataclass
class Cursor:
    """Position after `step` optimizer steps; `meter` is what the next metrics row already holds."""

    epoch: int = 0
    step: int = 0
    samples: int = 0
    steps_per_epoch: int = 0
    best: float | None = None  # of train.best_metric
    meter: dict[str, Any] = field(default_factory=dict)
    owes_evaluation: bool = False  # one is due after this step, and not all of it was scored yet

    def advance(self, global_batch: int, eval_every: int, total_steps: int) -> None:
        """Count one optimizer step; an evaluation is due after the last step of the run, and of an
        epoch whose number `eval_every` divides."""
        self.step += 1
        self.samples += global_batch
        self.epoch, into = divmod(self.step, self.steps_per_epoch)
        self.owes_evaluation = self.step == total_steps or (
            into == 0 and self.epoch % eval_every == 0
        )

    def improve(self, value: float | None, higher_is_better: bool) -> bool:
        """Whether `value` is better than any before it (a tie is not); remembers it if so."""
        if value is None:
            return False
        sign = 1 if higher_is_better else -1
        if self.best is not None and sign * value <= sign * self.best:
            return False
        self.best = value
        return True

    def to_plain(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self)


def resumed(saved: dict[str, Any], steps_per_epoch: int) -> Cursor:
    """The cursor of a checkpoint; BadInput when its steps are of another length.

    Learning rate, order and file names count in steps: with another number of them in an epoch a
    run would be neither the old one nor a new one.
    """
    cursor = Cursor(**saved)
    if cursor.steps_per_epoch not in (0, steps_per_epoch):
        raise BadInput(
            f"the checkpoint's epochs have {cursor.steps_per_epoch} steps, this run's have "
            f"{steps_per_epoch}: train.global_batch or the training set is another; start a new "
            "run from it with model.weights=FILE and another run.name"
        )
    cursor.steps_per_epoch = steps_per_epoch
    return cursor
