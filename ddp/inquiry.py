"""Asking all ranks where they stand, when one is overdue: what each says, and who says nothing."""

import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch.distributed as dist

from ddp.blame import Answer
from ddp.board import Board, Standing
from ddp.mail import Mail

ANSWERS_S = 2.0  # a living process on a crowded machine answers within this
_UNREACHED_S = 1e9  # how long one has been silent of whom only an old note is known


def answer(board: Board) -> Answer:
    """Where this process stands, where in the program, and what it sees of its neighbours."""
    standings = board.standings()
    [mine] = [s for s in standings if s.rank == board.rank]
    others = [s for s in standings if s.rank != board.rank]
    begun = -1
    with suppress(RuntimeError, ValueError):
        if dist.is_initialized():
            group: Any = dist.group.WORLD
            begun = group._get_sequence_number_for_group()
    return Answer(mine, socket.gethostname(), begun, stack(), others)


def stack() -> str:
    """Where the main thread of this process is."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)[-16:]) if frame else ""


def note(mail: Mail, mine: Standing) -> None:
    """Leave where this process stands, for when it cannot be asked any more."""
    mail.leave(f"at/{mine.rank}", {"host": socket.gethostname(), **mine._asdict()})


def reply(mail: Mail, case: int, mine: Answer) -> None:
    """Answer a question."""
    mail.leave(f"answer/{case}/{mine.standing.rank}", mine.written())


def ask(mail: Mail) -> tuple[list[Answer], Mapping[int, Answer | None]]:
    """Every rank's answer, and of those that gave none what is known of them."""
    case, world_size = mail.count("cases"), mail.world_size
    mail.send(range(world_size), {"asked": case})
    until = time.monotonic() + ANSWERS_S
    answers: dict[int, Answer] = {}
    while len(answers) < world_size and time.monotonic() < until:
        time.sleep(0.1)
        for rank in range(world_size):
            letter = None if rank in answers else mail.find(f"answer/{case}/{rank}")
            if letter is not None:
                answers[rank] = Answer.read(letter)
    seen = {s.rank: (s, a.host) for a in answers.values() for s in a.neighbours}
    silent: dict[int, Answer | None] = {}
    for rank in set(range(world_size)) - set(answers):
        silent[rank] = None
        if rank in seen:
            silent[rank] = Answer(*seen[rank], -1, "")
        elif (last := mail.find(f"at/{rank}")) is not None:
            there = last.pop("host")
            silent[rank] = Answer(Standing(**last | {"silent_s": _UNREACHED_S}), there, -1, "")
    return list(answers.values()), silent
