"""Who has stopped, and where: each process says where it stands, and the silent one is named.

A process that works marks its line on the board of its host, a write to memory. A thread looks at
the board; nothing travels while all is well. When somebody is silent for longer than its phase
allows, one rank asks all of them: those that do not answer have stopped, and of those that do, the
one that has begun the fewest collectives is what the others wait for. It is named with its stack,
and every process ends; one that cannot end itself is killed by its neighbours, so that the launcher
blames it and no other.
"""

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ddp.blame import Answer, blame, one_line, report
from ddp.board import Board, Standing, is_gone
from ddp.mail import Letter, Mail, has_launcher_store, is_elastic

T = TypeVar("T")

START_TIMEOUT_S = 1800.0  # until the configuration is known
_BAD_INPUT = 2  # bad input: one message, by the rank that found it
_LEFT = 75  # to be gone on with: of an elastic job, without the host that found it
_ANSWERS_S = 2.0  # a living process on a crowded machine answers within this
_TOLD_EVERY_S = 15.0  # how often a rank leaves its place where other hosts find it
_OTHERS_WAIT_S = 0.6  # the launcher blames the process that ends first
_PR_SET_PDEATHSIG = 1


# Records code, reason, and whether to start again is in vain; returns the code to end with.
OnEnd = Callable[[int, str, bool], int]


class Hang(RuntimeError):
    """This process made no progress, and was named for it."""


class Watch:
    """One process's side: its line on the board, a thread that looks, a thread that reads mail."""

    def __init__(self, on_end: OnEnd) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.host = socket.gethostname()
        self._on_end = on_end
        self._limits = {"start": START_TIMEOUT_S, "": START_TIMEOUT_S}
        self._board = self._open_board()
        self._mail: Mail | None = None
        self._closed = threading.Event()
        self._ending = threading.Lock()
        self._patient_until = 0.0
        self.mark("start", 0)
        if self.world_size > 1 and has_launcher_store():
            self.open_mail()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def _open_board(self) -> Board:
        """The board of this host's ranks, where their launcher gives them a common folder."""
        own = os.environ.get("TORCHELASTIC_ERROR_FILE")
        local, many = (
            int(os.environ.get(f"LOCAL_{n}", d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        if own is None or not Path(own).parents[1].is_dir():
            return Board(None, 1, 0, self.rank)
        return Board(Path(own).parents[1] / "board", many, local, self.rank)

    def open_mail(self) -> None:
        """Have letters read from now on, once."""
        if self._mail is None and self.world_size > 1:
            self._mail = Mail(self.rank)
            threading.Thread(target=self._read, name="watch-mail", daemon=True).start()

    def set_limits(self, start_s: float, hang_s: float) -> None:
        """How long a process may be silent: before its first step, and from then on."""
        self._limits = {"start": start_s, "meeting": start_s, "": hang_s}

    def mark(self, phase: str | None = None, step: int | None = None) -> None:
        """Note that this process moved."""
        self._board.mark(phase, step)

    # The thread that looks.

    def _limit(self, phase: str) -> float:
        return self._limits.get(phase, self._limits[""])

    def _look(self) -> None:
        told = 0.0
        while not self._closed.wait(min(1.0, min(self._limits.values()) / 10)):
            standings = [s for s in self._board.standings() if not s.left]
            self._bury([s for s in standings if s.rank != self.rank and is_gone(s.pid)])
            now = time.monotonic()
            if self._mail is not None and now - told >= _TOLD_EVERY_S:
                told = now
                for mine in (s for s in standings if s.rank == self.rank):
                    self._mail.leave(f"at/{self.rank}", {"host": self.host, **mine._asdict()})
            late = [s for s in standings if s.silent_s > self._limit(s.phase)]
            if late and now >= self._patient_until:
                self._suspect(late)

    def _bury(self, dead: list[Standing]) -> None:
        """End the job because a neighbour died without a word; the first to see it tells all."""
        if dead and self._mail is not None and self._mail.count("buried") == 1:
            line = one_line([(s, self.host) for s in dead], "died")
            self._end_all({"code": 1, "line": line, "culprits": [s.rank for s in dead]})

    def _suspect(self, late: list[Standing]) -> None:
        self._patient_until = time.monotonic() + 2 * _ANSWERS_S
        # Alone, or cut off from the others, whose store then answers nothing for ever.
        myself = [Answer(s, self.host, -1, self._stack()) for s in late if s.rank == self.rank]
        cut_off = threading.Timer(3 * _ANSWERS_S, self._end_myself, [myself])
        cut_off.daemon = True
        cut_off.start()
        turn = 0 if self._mail is None else self._mail.count("judges")
        if self._mail is None or turn == 0:
            self._end_myself(myself)
            return
        if turn == 1:
            answers, silent = self._ask()
            guilty = blame(answers, silent, self._limit)
            if guilty:
                frozen = any(one.standing.rank in silent for one in guilty)
                self._end_all(self._verdict(guilty, frozen=frozen))
            elif answers:  # somebody is slow, but within its time
                left = min(self._limit(a.standing.phase) - a.standing.silent_s for a in answers)
                self._patient_until = time.monotonic() + max(0.5, left)
        self._mail.count("judges", by=-1)
        cut_off.cancel()

    def _end_myself(self, myself: list[Answer]) -> None:
        if myself:
            self._end(self._verdict(myself, frozen=False))

    def _verdict(self, guilty: list[Answer], *, frozen: bool) -> Letter:
        ranks = [one.standing.rank for one in guilty]
        return {
            "code": 1,
            "line": one_line([(one.standing, one.host) for one in guilty], "hangs"),
            "report": report(guilty),
            "culprits": ranks,
            "frozen": frozen,
            "judge": self.rank,
        }

    def _ask(self) -> tuple[list[Answer], dict[int, Answer | None]]:
        """Every rank's answer, and of those that gave none what is known of them."""
        assert self._mail is not None
        case = self._mail.count("cases")
        self._mail.send(range(self.world_size), {"asked": case})
        until = time.monotonic() + _ANSWERS_S
        answers: dict[int, Answer] = {}
        while len(answers) < self.world_size and time.monotonic() < until:
            time.sleep(0.1)
            for rank in range(self.world_size):
                letter = None if rank in answers else self._mail.find(f"answer/{case}/{rank}")
                if letter is not None:
                    answers[rank] = Answer.read(letter)
        seen = {s.rank: (s, a.host) for a in answers.values() for s in a.neighbours}
        silent: dict[int, Answer | None] = {}
        for rank in set(range(self.world_size)) - set(answers):
            silent[rank] = None
            if rank in seen:
                silent[rank] = Answer(*seen[rank], -1, "")
            elif (last := self._mail.find(f"at/{rank}")) is not None:
                host = last.pop("host")
                silent[rank] = Answer(Standing(**last | {"silent_s": 1e9}), host, -1, "")
        return list(answers.values()), silent

    # The thread that reads letters.

    def _read(self) -> None:
        assert self._mail is not None
        for letter in self._mail.letters():
            if "asked" in letter:
                self._mail.leave(f"answer/{letter['asked']}/{self.rank}", self._answer().written())
            elif "line" in letter:
                self._end(letter)
            else:
                return

    def _answer(self) -> Answer:
        standings = self._board.standings()
        [mine] = [s for s in standings if s.rank == self.rank]
        others = [s for s in standings if s.rank != self.rank]
        begun = -1
        with suppress(RuntimeError, ValueError):
            if dist.is_initialized():
                group: Any = dist.group.WORLD
                begun = group._get_sequence_number_for_group()
        return Answer(mine, self.host, begun, self._stack(), others)

    def _stack(self) -> str:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        return "".join(traceback.format_stack(frame)[-16:]) if frame else ""

    # The end.

    def _end_all(self, verdict: Letter) -> None:
        if self._mail is not None:
            others = [rank for rank in range(self.world_size) if rank != self.rank]
            self._mail.send(others, verdict)
        self._end(verdict)

    def _end(self, verdict: Letter) -> None:
        """End this process for a `verdict`: the guilty at once, the others a little later."""
        if self._closed.is_set() or not self._ending.acquire(blocking=False):
            return
        line, guilty = verdict["line"], self.rank in verdict["culprits"]
        judged = verdict.get("judge") == self.rank
        code = _LEFT if self._can_do_without(verdict) else verdict["code"]
        if judged:  # at once: the launcher ends everybody when the first one ends
            _say(verdict["report"])
        elif code not in (0, _BAD_INPUT) and not guilty:
            _say(f"[rank {self.rank}] ends: {line}")
        code = self._on_end(code, line, verdict.get("final", False))
        self._board.mark(left=True)
        if verdict.get("frozen"):
            self._kill([rank for rank in verdict["culprits"] if rank != self.rank])
        if guilty and "report" in verdict:
            with suppress(OSError):
                get_error_handler().record_exception(Hang(line))
        if not guilty:
            time.sleep(_OTHERS_WAIT_S)
        os._exit(code)

    def _can_do_without(self, verdict: Letter) -> bool:
        """Whether the run can go on without the host whose input was bad: not the first."""
        here = {standing.rank for standing in self._board.standings()}
        return (
            is_elastic()
            and verdict["code"] == _BAD_INPUT
            and not {0, *here} & set(verdict["culprits"])
        )

    def _kill(self, ranks: list[int]) -> None:
        """Kill those of `ranks` that are on this host; one that only holds Python's lock shows its
        stack before."""
        pids = [s.pid for s in self._board.standings() if s.rank in ranks and not s.left]
        for number, wait_s in ((signal.SIGUSR2, 0.3), (signal.SIGKILL, 0.0)):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(wait_s)

    def fail(self, code: int, reason: str, *, final: bool) -> str:
        """Tell all ranks that this one ends, and why; then the caller ends it. Returns the line."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # a verdict is being carried out, and ends the process
        mine = self._answer().standing
        self._board.mark(left=True)
        line = one_line([(mine, self.host)], "failed") + f": {reason}"
        if self._mail is not None:
            others = [rank for rank in range(self.world_size) if rank != self.rank]
            self._mail.send(
                others, {"code": code, "line": line, "culprits": [self.rank], "final": final}
            )
        return line

    def await_verdict(self, seconds: float) -> None:
        """Wait for the reason why another rank is gone; does not return when one comes."""
        if self._mail is not None:
            time.sleep(seconds)
        if self._ending.locked():
            time.sleep(60)

    def close(self) -> None:
        """Stop watching. What is left of this process ends within the hang limit, or is ended."""
        self._closed.set()
        self._board.mark("end", left=True)
        if self._mail is not None:
            self._mail.send([self.rank], {})
        faulthandler.dump_traceback_later(max(1.0, self._limits[""]), exit=True)


def _say(text: str) -> None:
    """Write to standard error past every lock: the main thread may be stuck holding one."""
    with suppress(OSError):
        os.write(2, text.encode() + b"\n")


_watch: Watch | None = None  # a process has one main thread, and one place where it stands


def begin(on_end: OnEnd) -> None:
    """Watch this process and, with the other ranks, all of them."""
    global _watch
    with suppress(AttributeError, ValueError, OSError):
        faulthandler.register(signal.SIGUSR2, all_threads=False)
    if has_launcher_store():  # a launcher that is killed cannot end its ranks: they save and stop
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _watch = Watch(on_end)


def limit(start_s: float, hang_s: float) -> None:
    """Seconds that a process may be silent: before its first step, and from then on."""
    if _watch is not None:
        _watch.set_limits(start_s, hang_s)


def mark(phase: str | None = None, step: int | None = None) -> None:
    """Note that this process moved: into `phase`, having done `step` steps (None: as before)."""
    if _watch is not None:
        _watch.mark(phase, step)


def marked(items: Generator[T], waiting: str, working: str) -> Generator[T]:
    """Each of `items`; the watch knows when this process waits for one, and when it works on it."""
    with closing(items):
        mark(waiting)
        for item in items:
            mark(working)
            yield item
            mark(waiting)


def met() -> None:
    """The ranks have met: letters reach all of them, whoever holds the store."""
    if _watch is not None:
        _watch.open_mail()
        _watch.mark("start")


def fail(code: int, reason: str, *, final: bool = False) -> str:
    """Tell all ranks that this one ends now, and why; the line that they are told.

    `final`: the launcher need not start them again.
    """
    return reason if _watch is None else _watch.fail(code, reason, final=final)


def leave_quietly() -> None:
    """All ranks end together and know why: nobody is to wonder where this one is."""
    if _watch is not None:
        _watch._board.mark(left=True)


def await_verdict(seconds: float = 4.0) -> None:
    """Wait for the reason why another rank is gone; does not return when one comes."""
    if _watch is not None:
        _watch.await_verdict(seconds)


def close() -> None:
    """All ranks are done: stop watching."""
    if _watch is not None:
        _watch.close()
