"""Where the processes of one host stand, and for how long each may: in memory that outlives them.

Every process writes its own line; any of them reads the line of one that is stopped or dead.
"""

import mmap
import os
import signal
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# A line is written in two parts, for where its process stands changes several times a step.
_PLACE = struct.Struct("=qd16s")  # steps done, monotonic clock of the last change, phase
_OWNER = struct.Struct("=iidd?")  # pid (0: nobody yet), rank, limits in seconds, left
_LINE_BYTES = 64

START_TIMEOUT_S = 1800.0  # until the configuration is known
_BEFORE_STEPS = ("start", "meeting")


class Standing(NamedTuple):
    """One process: where it stands, and for how many seconds it has not moved."""

    rank: int
    pid: int
    step: int  # optimizer steps done
    phase: str
    silent_s: float
    limit_s: float  # of its silence in this phase, as far as it knows
    left: bool  # it ended on purpose


@dataclass
class Limits:
    """For how many seconds a process may be silent: before its first step, and from then on."""

    start_s: float = START_TIMEOUT_S
    hang_s: float = START_TIMEOUT_S

    def of(self, phase: str) -> float:
        """Of a process in `phase`."""
        return self.start_s if phase in _BEFORE_STEPS else self.hang_s

    def of_other(self, other: Standing) -> float:
        """Of another process, by what it knows of the configuration, or this one."""
        return min(other.limit_s, self.of(other.phase))

    def learn(self, others: Iterable[Standing]) -> None:
        """Take over what others know of the configuration before this process does."""
        for other in others:
            if other.phase in _BEFORE_STEPS and other.limit_s < self.start_s:
                self.start_s = other.limit_s


class Board:
    """The lines of this host's processes, in a file that all of them map, or this one's alone."""

    def __init__(self, path: Path | None, lines: int, mine: int, rank: int) -> None:
        """`path` of the shared file, made when it is missing; None: nobody else reads this one."""
        size = lines * _LINE_BYTES
        if path is None:
            self._memory = mmap.mmap(-1, size)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
            os.close(descriptor)
        self.rank, self.limits = rank, Limits()
        self._lines, self._at = lines, mine * _LINE_BYTES
        self._left = False
        self._phase, self._step = b"start", 0
        self.mark()
        self._sign()  # last: who has signed is watched

    def mark(self, phase: str | None = None, step: int | None = None) -> None:
        """Note that this process moved: into `phase`, with `step` steps done (None: as before)."""
        if phase is not None:
            self._phase = phase.encode()
        if step is not None:
            self._step = step
        _PLACE.pack_into(self._memory, self._at, self._step, time.monotonic(), self._phase)

    def limit(self, start_s: float, hang_s: float) -> None:
        """Set this process's limits; its neighbours may not know them yet."""
        self.limits.start_s, self.limits.hang_s = start_s, hang_s
        self.mark()
        self._sign()

    def leave(self) -> None:
        """Note that this process is to be missed by nobody."""
        self._left = True
        self._sign()

    def _sign(self) -> None:
        who = (os.getpid(), self.rank, self.limits.start_s, self.limits.hang_s, self._left)
        _OWNER.pack_into(self._memory, self._at + _PLACE.size, *who)

    def standings(self) -> list[Standing]:
        """Every process of this host that has written its line."""
        found, now = [], time.monotonic()
        for at in range(0, self._lines * _LINE_BYTES, _LINE_BYTES):
            step, changed, name = _PLACE.unpack_from(self._memory, at)
            pid, rank, *limits, left = _OWNER.unpack_from(self._memory, at + _PLACE.size)
            if pid:
                phase = name.rstrip(b"\0").decode(errors="replace")
                limit_s = Limits(*limits).of(phase)
                found.append(Standing(rank, pid, step, phase, now - changed, limit_s, left))
        return found

    def kill(self, ranks: Sequence[int]) -> None:
        """Kill those of `ranks` that are on this host; one that only holds Python's lock shows its
        stack before."""
        pids = [s.pid for s in self.standings() if s.rank in ranks and not s.left]
        for number, wait_s in ((signal.SIGUSR2, 0.3), (signal.SIGKILL, 0.0)):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(wait_s)


def open_board(rank: int) -> Board:
    """The board of this host's ranks, where their launcher gives them a common folder."""
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if own is None or not Path(own).parents[1].is_dir():
        return Board(None, 1, 0, rank)
    many, mine = (int(os.environ.get(f"LOCAL_{n}", d)) for n, d in (("WORLD_SIZE", 1), ("RANK", 0)))
    return Board(Path(own).parents[1] / "board", many, mine, rank)


def is_gone(pid: int, *, zombie_too: bool = True) -> bool:
    """Whether no process `pid` of this host runs any more. A zombie does not; telling it apart
    takes a file of the kernel."""
    try:
        os.kill(pid, 0)
        if not zombie_too:
            return False
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"
