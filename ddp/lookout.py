"""The threads that look out: at the board of this host, and for letters of the other ranks.

One looks at the board once a second. When somebody is silent for longer than its phase allows, one
rank asks all of them (`ddp/inquiry.py`), and judges who it is (`ddp/blame.py`). Of a rank that died
without a word its neighbours tell.
"""

import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

from ddp.bell import Bell, heard_early
from ddp.blame import Answer, blame, one_line, sentence
from ddp.board import Board, Standing, is_gone
from ddp.end import OTHERS_WAIT_S, End
from ddp.inquiry import ANSWERS_S, answer, ask, note, reply, stack
from ddp.mail import Letter, Mail

_LOOKS_EVERY_S = 1.0
_TOLD_EVERY_S = 15.0  # how often a rank leaves its place where other hosts find it


class Lookout:
    """Looks as soon as it is made; letters are read once the mail can be opened."""

    def __init__(self, board: Board, mail: Mail, bell: Bell, end: End) -> None:
        self._board, self._mail, self._bell, self._end = board, mail, bell, end
        self._rank = board.rank
        self._told_at = 0.0  # monotonic clock
        self._patient_until = 0.0
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def open_mail(self) -> None:
        """Have letters read from now on, once."""
        if self._mail.world_size > 1 and not self._mail.is_open:
            letters = self._mail.open()
            threading.Thread(
                target=self._read, args=[letters], name="watch-mail", daemon=True
            ).start()

    def _read(self, letters: Iterator[Letter]) -> None:
        for letter in letters:
            if "asked" in letter:
                reply(self._mail, letter["asked"], answer(self._board))
            elif "line" in letter:
                self._end.this_process(letter)
            else:
                return

    def _look(self) -> None:
        limits = self._board.limits
        while not self._end.closed.is_set():
            shortest_s = min(limits.start_s, limits.hang_s)
            heard = self._bell.wait(min(_LOOKS_EVERY_S, shortest_s / 10))
            standings = [s for s in self._board.standings() if not s.left]
            self._bury(self._dead(standings, among_all=bool(heard)))
            if signal.SIGTERM in heard and signal.getsignal(signal.SIGTERM) is heard_early:
                self._die()
            self._note_mine(standings)
            limits.learn(standings)
            late = [s for s in standings if s.silent_s > limits.of_other(s)]
            if late and time.monotonic() >= self._patient_until:
                self._suspect(late)

    def _note_mine(self, standings: list[Standing]) -> None:
        """Leave where this process stands for other hosts, now and then."""
        if self._mail.is_open and time.monotonic() - self._told_at >= _TOLD_EVERY_S:
            self._told_at = time.monotonic()
            for mine in (s for s in standings if s.rank == self._rank):
                note(self._mail, mine)

    def _dead(self, standings: list[Standing], *, among_all: bool) -> list[Standing]:
        """The neighbours that run no more; each process only looks after the next one, and not
        closely, until something has happened."""
        later = sorted((s for s in standings if s.rank != self._rank),
                       key=lambda s: (s.rank < self._rank, s.rank))  # fmt: skip
        looked_at = later if among_all else later[:1]
        return [s for s in looked_at if is_gone(s.pid, zombie_too=among_all)]

    def _bury(self, dead: list[Standing]) -> None:
        """End the job because a neighbour died without a word; the first to see it tells all."""
        if dead and self._mail.count("buried") == 1:
            line = one_line([(s, socket.gethostname()) for s in dead], "died")
            self._end.for_all({"code": 1, "line": line, "culprits": [s.rank for s in dead]})

    def _die(self) -> None:
        """End by the SIGTERM that came before the first step: there is nothing to save. A launcher
        sends it when a rank has died, and then the neighbour that saw it first tells."""
        self._end.closed.wait(OTHERS_WAIT_S)
        if not self._end.has_come:
            ctypes.CDLL(None).signal(signal.SIGTERM, 0)
            os.kill(os.getpid(), signal.SIGTERM)

    def _suspect(self, late: list[Standing]) -> None:
        """End all processes because some hang, unless those are still within their time."""
        # Alone, or cut off from the others, whose store then answers nothing for ever.
        myself = [
            Answer(s, socket.gethostname(), -1, stack()) for s in late if s.rank == self._rank
        ]
        cut_off = threading.Timer(3 * ANSWERS_S, self._end_myself, [myself])
        cut_off.daemon = True
        cut_off.start()
        turn = self._mail.count("judges")
        if turn == 0:
            self._end_myself(myself)
            return
        # Where another judges, it may not see what this one sees: look again soon.
        patience_s = self._judge() if turn == 1 else 0.5
        self._patient_until = time.monotonic() + patience_s
        self._mail.count("judges", by=-1)
        cut_off.cancel()

    def _judge(self) -> float:
        """Ask all ranks, and end all where some are guilty; else the seconds until one can be."""
        limits = self._board.limits
        answers, silent = ask(self._mail)
        limits.learn(one.standing for one in answers)
        guilty = blame(answers, silent, limits.of_other)
        if guilty:
            frozen = any(one.standing.rank in silent for one in guilty)
            self._end.for_all(sentence(guilty, self._rank, frozen=frozen))
        # Somebody is slow, but within its time.
        known = [one.standing for one in (*answers, *silent.values()) if one is not None]
        left_s = [limits.of_other(s) - s.silent_s for s in known if not s.left]
        return max(0.5, min(left_s, default=0.0))

    def _end_myself(self, myself: list[Answer]) -> None:
        if myself:
            self._end.this_process(sentence(myself, self._rank, frozen=False))

    def seek_missing(self) -> None:
        """Ask who is gone, once for all ranks; does not return where that is found out.

        Of a rank whose whole host is gone no neighbour tells.
        """
        if not self._mail.is_open:
            return
        if self._mail.count("seekers") != 1:  # another asks all, one by one
            time.sleep(ANSWERS_S + OTHERS_WAIT_S + 0.005 * self._mail.world_size)
            return
        _, silent = ask(self._mail)
        gone = [one for one in silent.values() if one is not None and not one.standing.left]
        if gone:
            line = one_line([(one.standing, one.host) for one in gone], "is gone")
            ranks = [one.standing.rank for one in gone]
            self._end.for_all({"code": 1, "line": line, "culprits": ranks})
        self._end.give_way()
