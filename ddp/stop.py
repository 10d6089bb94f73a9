"""Stopping together: what any rank asks for, every rank does at the same step."""

import signal
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from ddp.collectives import group_device, world_size

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

# Seconds from one question to the next: short beside the time that a signal leaves to save, long
# beside what asking costs.
_ASK_EVERY_S = 1.0
MOST_BOUNDARIES = 64  # from one question to the next, lest a run that turns slow does not answer


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

    @property
    def stops(self) -> bool:
        """Whether the run is to end."""
        return bool(self.signal or self.failed)

    def obey(self, step: int, folder: Path) -> None:
        """Raise Stopped for a signal, SaveStopped for a failure, after `step`; on all ranks."""
        if self.failed:
            raise SaveStopped(f"stopped after step {step}: a checkpoint could not be saved")
        if self.signal:
            name = signal.Signals(self.signal).name
            raise Stopped(
                f"stopped by {name} after step {step}; --resume {folder / 'last.pt'} goes on"
            )


_NONE = Wishes()


class Votes:
    """Asks all ranks, without blocking a step, whether anyone wants to stop or to save.

    A small all-reduce is started at one boundary between steps and read at a later one, when it is
    long done; every rank reads it at the same boundary, so all act at the same step. With the
    wishes travels how long a step takes on the slowest rank: all ranks derive from it how many
    boundaries to let pass until the next question. The signal handler only sets a number.
    """

    def __init__(self, every_s: float = _ASK_EVERY_S) -> None:
        self._every_s = every_s
        self._alone = world_size() == 1
        self._mine = [0, 0, 0]
        self._work: dist.Work | None = None
        self._row = torch.zeros(4, dtype=torch.int32)
        self._sent = self._row.to(group_device())  # the same one on a CPU
        self._passed, self._to_pass = 0, 1
        self._asked_at = time.monotonic()
        self.wishes = Wishes()  # the newest answer; one to stop stays

    def listen(self, signals: Iterable[signal.Signals] = SIGNALS) -> None:
        """Turn these signals into a wish to stop; the handler does nothing else."""
        for number in signals:
            # nohup ignores SIGHUP, and means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._mine[0] = number

    def ask_to_save(self) -> None:
        """Ask that all ranks save at the next common boundary."""
        self._mine[1] = 1

    def ask_to_end(self) -> None:
        """Ask that all ranks end, because something failed on this one."""
        self._mine[2] = 1

    def at_boundary(self) -> Wishes:
        """What all ranks do now; the same answer on every rank, which all call equally often."""
        if self.wishes.stops:
            return self.wishes
        self.wishes = _NONE
        if self._alone:
            return self._taken(self._mine)
        self._passed += 1
        if self._passed < self._to_pass:
            return self.wishes
        if self._work is not None:
            self._work.wait()
            *wishes, slowest_us = self._sent.tolist()
            self._taken(wishes)
            boundaries = int(self._every_s * 1e6 / max(1, slowest_us))
            self._to_pass = max(1, min(boundaries, 2 * self._to_pass, MOST_BOUNDARIES))
        now = time.monotonic()
        mean_us = (now - self._asked_at) / self._passed * 1e6
        self._passed, self._asked_at = 0, now
        self._row.numpy()[:] = (*self._mine, min(2**30, int(mean_us)))
        if self._sent is not self._row:
            self._sent.copy_(self._row)
        self._work = dist.all_reduce(self._sent, op=dist.ReduceOp.MAX, async_op=True)
        return self.wishes

    def between(self, items: Generator[T], common: int) -> Generator[T]:
        """`items`, which end early on all ranks alike when one of them wants to stop.

        There are `common` boundaries, after the first items; a rank with fewer items makes them up.
        """
        with closing(items):
            passed = 0
            for item in items:
                yield item
                passed += 1
                if passed <= common and self.at_boundary().stops:
                    return
            while passed < common and not self.at_boundary().stops:
                passed += 1

    def _taken(self, values: list[int]) -> Wishes:
        number, save, failed = values
        if save:
            self._mine[1] = 0
        self.wishes = Wishes(number, save, failed) if any(values) else _NONE
        return self.wishes

    def close(self) -> None:
        """Wait for the question still under way; all ranks call it before they leave."""
        if self._work is not None:
            self._work.wait()
            self._work = None
