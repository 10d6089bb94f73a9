"""The one file that asks for rank 0: what it alone does, and how its failure reaches the others."""

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch.distributed as dist

from ddp.collectives import broadcast_bytes, inside_gate
from ddp.rehearsal import is_rehearsal

P = ParamSpec("P")
R = TypeVar("R")


class Rank0Failed(RuntimeError):
    """What rank 0 failed with, raised on the other ranks with rank 0's message and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_rank0() -> bool:
    """Whether this is rank 0 of all hosts; before the group exists, as the launcher says."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def stands_for_rank0() -> bool:
    """Whether what rank 0 makes for every rank is made here: in a rehearsal there is no other."""
    return is_rank0() or is_rehearsal()


def is_first_of_host() -> bool:
    """Whether this is the process that tells its host's launcher how the job ended."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def rank0_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """`function` on rank 0, nothing elsewhere; a collective inside it is an error, not a hang."""
    return _gated(function, is_rank0)


def _gated(function: Callable[P, R], opens: Callable[[], bool]) -> Callable[P, R | None]:
    @wraps(function)
    def gated(*args: P.args, **kwargs: P.kwargs) -> R | None:
        if not opens():
            return None
        with inside_gate():
            return function(*args, **kwargs)

    return gated


def on_rank0(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """The result of `function` on rank 0, None elsewhere; its failure is raised on every rank."""
    return _shared(_gated(function, stands_for_rank0), *args, **kwargs)


def on_every_rank(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of `function` on every rank; what fails everywhere is told by rank 0 alone."""
    return _shared(function, *args, **kwargs)


def _shared(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `function`; where rank 0 failed the other ranks raise that, else each its own."""
    failure: Exception | None = None
    try:
        result = function(*args, **kwargs)
    except Exception as error:
        failure = error
    verdict = broadcast_bytes(b"" if failure is None else _encode(failure))
    if verdict and not stands_for_rank0():
        raise _decode(verdict) from failure
    if failure is not None:
        raise failure
    return result


def _encode(failure: Exception) -> bytes:
    code = int(getattr(failure, "exit_code", 1))
    return f"{code} {failure or type(failure).__name__}".encode()


def _decode(verdict: bytes) -> Rank0Failed:
    code, _, message = verdict.decode().partition(" ")
    return Rank0Failed(message, int(code))
