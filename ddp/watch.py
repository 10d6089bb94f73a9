"""Who has stopped, and where: each process says where it stands, and the silent one is named.

A process that works marks its line on the board of its host, a write to memory. A thread looks at
the board; nothing travels while all is well. When somebody is silent for longer than its phase
allows, one rank asks all of them: those that do not answer have stopped, and of those that do, the
one that has begun the fewest collectives is what the others wait for. It is named with its stack,
and every process ends; one that cannot end itself is killed by its neighbours, so that the launcher
blames it and no other. Of a rank that died without a word its neighbours tell.
"""

import ctypes
import faulthandler
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from typing import TypeVar

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ddp.bell import Bell, heard_early
from ddp.blame import Answer, blame, one_line, sentence
from ddp.board import Standing, is_gone, open_board
from ddp.inquiry import ANSWERS_S, answer, ask, note, reply, stack
from ddp.mail import Letter, Mail, has_launcher_store, is_elastic

T = TypeVar("T")

START_TIMEOUT_S = 1800.0  # until the configuration is known
_BAD_INPUT = 2  # bad input: one message, by the rank that found it
_LEFT = 75  # to be gone on with: of an elastic job, without the host that found it
_LOOKS_EVERY_S = 1.0
_BEFORE_STEPS = ("start", "meeting")
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
        self._limits = dict.fromkeys((*_BEFORE_STEPS, ""), START_TIMEOUT_S)
        self._board = open_board(self.rank)
        self._mail: Mail | None = None
        self._closed = threading.Event()
        self._ending = threading.Lock()
        self._patient_until = 0.0
        self._bell = Bell()
        self.mark("start", 0)
        if self.world_size > 1 and has_launcher_store():
            self.open_mail()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def open_mail(self) -> None:
        """Have letters read from now on, once."""
        if self._mail is None and self.world_size > 1:
            self._mail = Mail(self.rank)
            threading.Thread(target=self._read, name="watch-mail", daemon=True).start()

    def set_limits(self, start_s: float, hang_s: float) -> None:
        """How long a process may be silent: before its first step, and from then on."""
        self._limits = {**dict.fromkeys(_BEFORE_STEPS, start_s), "": hang_s}
        self._board.mark(limit_s=start_s)  # its neighbours may not know the configuration yet

    def mark(self, phase: str | None = None, step: int | None = None) -> None:
        """Note that this process moved."""
        self._board.mark(phase, step, None if phase is None else self._limit(phase))

    def leave(self) -> None:
        """From now on nobody is to wonder where this process is."""
        self._board.mark(left=True)

    # The thread that looks.

    def _limit(self, phase: str) -> float:
        return self._limits.get(phase, self._limits[""])

    def _limit_of(self, other: Standing) -> float:
        return min(other.limit_s, self._limit(other.phase))

    def _learn_limits(self, standings: Iterable[Standing]) -> None:
        """Take over what others know of the configuration before this process does."""
        for other in standings:
            if other.phase in _BEFORE_STEPS and other.limit_s < self._limit(other.phase):
                self._limits.update(dict.fromkeys(_BEFORE_STEPS, other.limit_s))

    def _look(self) -> None:
        told = 0.0
        while not self._closed.is_set():
            heard = self._bell.wait(min(_LOOKS_EVERY_S, min(self._limits.values()) / 10))
            standings = [s for s in self._board.standings() if not s.left]
            self._bury(self._dead(standings, among_all=bool(heard)))
            if signal.SIGTERM in heard and signal.getsignal(signal.SIGTERM) is heard_early:
                self._die()
            now = time.monotonic()
            if self._mail is not None and now - told >= _TOLD_EVERY_S:
                told = now
                for mine in (s for s in standings if s.rank == self.rank):
                    note(self._mail, mine, self.host)
            self._learn_limits(standings)
            late = [s for s in standings if s.silent_s > self._limit_of(s)]
            if late and now >= self._patient_until:
                self._suspect(late)

    def _dead(self, standings: list[Standing], *, among_all: bool) -> list[Standing]:
        """The neighbours that run no more; each process only looks after the next one, and not
        closely, until something has happened."""
        later = sorted((s for s in standings if s.rank != self.rank),
                       key=lambda s: (s.rank < self.rank, s.rank))  # fmt: skip
        looked_at = later if among_all else later[:1]
        return [s for s in looked_at if is_gone(s.pid, zombie_too=among_all)]

    def _bury(self, dead: list[Standing]) -> None:
        """End the job because a neighbour died without a word; the first to see it tells all."""
        if dead and self._mail is not None and self._mail.count("buried") == 1:
            line = one_line([(s, self.host) for s in dead], "died")
            self._end_all({"code": 1, "line": line, "culprits": [s.rank for s in dead]})

    def _die(self) -> None:
        """End by the SIGTERM that came before the first step: there is nothing to save. A launcher
        sends it when a rank has died, and then the neighbour that saw it first tells."""
        self._closed.wait(_OTHERS_WAIT_S)
        if not self._ending.locked():
            ctypes.CDLL(None).signal(signal.SIGTERM, 0)
            os.kill(os.getpid(), signal.SIGTERM)

    def _suspect(self, late: list[Standing]) -> None:
        # Alone, or cut off from the others, whose store then answers nothing for ever.
        myself = [Answer(s, self.host, -1, stack()) for s in late if s.rank == self.rank]
        cut_off = threading.Timer(3 * ANSWERS_S, self._end_myself, [myself])
        cut_off.daemon = True
        cut_off.start()
        turn = 0 if self._mail is None else self._mail.count("judges")
        if self._mail is None or turn == 0:
            self._end_myself(myself)
            return
        if turn == 1:
            answers, silent = ask(self._mail, self.world_size)
            self._learn_limits(one.standing for one in answers)
            guilty = blame(answers, silent, self._limit_of)
            if guilty:
                frozen = any(one.standing.rank in silent for one in guilty)
                self._end_all(sentence(guilty, self.rank, frozen=frozen))
            else:  # somebody is slow, but within its time
                known = [one.standing for one in (*answers, *silent.values()) if one is not None]
                left = min(
                    (self._limit_of(s) - s.silent_s for s in known if not s.left), default=0.0
                )
                self._patient_until = time.monotonic() + max(0.5, left)
        else:  # another judges, and may not see what this one sees
            self._patient_until = time.monotonic() + 0.5
        self._mail.count("judges", by=-1)
        cut_off.cancel()

    def _end_myself(self, myself: list[Answer]) -> None:
        if myself:
            self._end(sentence(myself, self.rank, frozen=False))

    # The thread that reads letters.

    def _read(self) -> None:
        assert self._mail is not None
        for letter in self._mail.letters():
            if "asked" in letter:
                reply(self._mail, letter["asked"], answer(self._board, self.rank, self.host))
            elif "line" in letter:
                self._end(letter)
            else:
                return

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
        try:
            code = self._on_end(code, line, verdict.get("final", False))
            self.leave()
            if verdict.get("frozen"):
                self._board.kill([rank for rank in verdict["culprits"] if rank != self.rank])
            if guilty and "report" in verdict:
                get_error_handler().record_exception(Hang(line))
            if not guilty:
                time.sleep(_OTHERS_WAIT_S)
        finally:
            os._exit(code)

    def _can_do_without(self, verdict: Letter) -> bool:
        """Whether the run can go on without the host whose input was bad: not the first."""
        here = {standing.rank for standing in self._board.standings()}
        return (
            is_elastic()
            and verdict["code"] == _BAD_INPUT
            and not {0, *here} & set(verdict["culprits"])
        )

    def fail(self, code: int, reason: str, *, final: bool) -> str:
        """Tell all ranks that this one ends, and why; then the caller ends it. Returns the line."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # a verdict is being carried out, and ends the process
        mine = answer(self._board, self.rank, self.host).standing
        self.leave()
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
            self._bell.ring()
            time.sleep(seconds)
        if self._ending.locked():
            time.sleep(60)

    def seek_missing(self) -> None:
        """Ask who is gone, once for all ranks; does not return where that is found out.

        Of a rank whose whole host is gone no neighbour tells.
        """
        if self._mail is None:
            return
        if self._mail.count("seekers") != 1:  # another asks all, one by one
            time.sleep(ANSWERS_S + _OTHERS_WAIT_S + 0.005 * self.world_size)
            return
        _, silent = ask(self._mail, self.world_size)
        gone = [one for one in silent.values() if one is not None and not one.standing.left]
        if gone:
            line = one_line([(one.standing, one.host) for one in gone], "is gone")
            ranks = [one.standing.rank for one in gone]
            self._end_all({"code": 1, "line": line, "culprits": ranks})
        if self._ending.locked():
            time.sleep(60)

    def close(self) -> None:
        """Stop watching. What is left of this process ends within the hang limit, or is ended."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # a verdict is being carried out, and ends the process
        self._closed.set()
        self._ending.release()
        self._bell.ring()
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
    if has_launcher_store():
        signal.signal(signal.SIGTERM, heard_early)


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
        _watch.leave()


def await_verdict(seconds: float) -> None:
    """Wait for the reason why another rank is gone; does not return when one comes."""
    if _watch is not None:
        _watch.await_verdict(seconds)


def seek_missing() -> None:
    """Ask all ranks who is gone; does not return where that is found out."""
    if _watch is not None:
        _watch.seek_missing()


def close() -> None:
    """All ranks are done: stop watching."""
    if _watch is not None:
        _watch.close()
