"""Stopping together: what any rank asks for, every rank does at the same step."""

import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist

from ddp.collectives import group_device, world_size

MOST_STEPS = 64  # between two questions, lest a run that turns slow does not answer for long
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(RuntimeError):
    """The run was stopped by a signal, and saved; `--resume auto` goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class SaveStopped(RuntimeError):
    """The run ended because rank 0 could not save (save.on_error: stop)."""


@dataclass(frozen=True)
class Wishes:
    """What some rank asked for: a signal's number (0: none), a save now, an end after a failure."""

    signal: int = 0
    save: int = 0
    failed: int = 0

    def obey(self, step: int) -> None:
        """Raise Stopped for a signal, RuntimeError for a failure, after `step`; on all ranks."""
        if self.failed:
            raise SaveStopped(f"stopped after step {step}: a checkpoint could not be saved")
        if self.signal:
            name = signal.Signals(self.signal).name
            raise Stopped(f"stopped by {name} after step {step}; --resume auto goes on from there")


class Votes:
    """Asks all ranks, without blocking a step, whether anyone wants to stop or to save.

    A small all-reduce is started at one boundary and read at the next, when it is long done; every
    rank reads it at the same step, so all act at the same step. The signal handler only sets a
    number. How many steps lie between boundaries is agreed in the same message: as many as take
    `every_s`, so that fast steps are not slowed and slow ones answer after two.
    """

    def __init__(self, every_s: float = 0.25) -> None:
        self._every_s = every_s
        self._alone = world_size() == 1
        self._mine = [0, 0, 0]
        self._steps = 1  # from one boundary to the next
        self._due: int | None = None
        self._asked = 0, time.monotonic()  # the last question's step and time
        self._work: dist.Work | None = None
        self._sent = torch.zeros(4, dtype=torch.int32, device=group_device())

    def listen(self, signals: Iterable[signal.Signals] = SIGNALS) -> None:
        """Turn these signals into a wish to stop; the handler does nothing else."""
        for number in signals:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._mine[0] = number

    def ask_to_save(self) -> None:
        """Ask that all ranks save at the next common boundary."""
        self._mine[1] = 1

    def ask_to_end(self) -> None:
        """Ask that all ranks end, because something failed on this one."""
        self._mine[2] = 1

    def at(self, step: int) -> Wishes:
        """What all ranks do after `step`; the same answer on every rank."""
        if self._alone:
            return self._take(self._mine)
        if self._due is not None and step < self._due:
            return Wishes()
        answer = Wishes()
        if self._work is not None:
            self._work.wait()
            *wishes, self._steps = self._sent.tolist()
            answer = self._take(wishes)
        self._due = step + self._steps
        self._sent.copy_(torch.tensor([*self._mine, self._fitting(step)], dtype=torch.int32))
        self._work = dist.all_reduce(self._sent, op=dist.ReduceOp.MAX, async_op=True)
        return answer

    def _fitting(self, step: int) -> int:
        """How many steps to leave between questions, by the time that those since the last took."""
        asked_step, asked_at = self._asked
        self._asked = step, time.monotonic()
        step_s = (self._asked[1] - asked_at) / max(1, step - asked_step)
        return max(1, min(int(self._every_s / max(1e-6, step_s)), 2 * self._steps, MOST_STEPS))

    def _take(self, values: list[int]) -> Wishes:
        number, save, failed = values
        if save:
            self._mine[1] = 0
        return Wishes(number, save, failed)

    def close(self) -> None:
        """Wait for the question still under way; all ranks call it before they leave."""
        if self._work is not None:
            self._work.wait()
            self._work = None
