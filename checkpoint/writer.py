"""The process that turns a snapshot into a durable file while the loop goes on.

A process, not a thread: a thread that writes holds the interpreter's lock, and costs the loop as
much as writing there. It is forked, like a DataLoader's worker, because importing torch anew takes
seconds; it runs on one thread and never touches a GPU or the process group. It lives as long as
its owner: closed by it, or killed by the kernel in the same moment.
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from checkpoint import digest
from checkpoint.publish import SaveFailed, publish
from checkpoint.snapshot import Snapshot
from checkpoint.state import encoded

_PR_SET_PDEATHSIG = 1
# A save should not slow the steps that run beside it on a full machine; a next save that is due
# early waits for it anyway.
_NICENESS = 5


@dataclass(frozen=True)
class Written:
    """One finished save: where, how large, how long from start to durable, and what to tell."""

    path: Path
    size_bytes: int
    seconds: float
    kept: list[str]  # names that stay float32
    warnings: list[str]


def write(folder: Path, content: Mapping[str, Any], *, best: bool, keep: int) -> Written:
    """Encode, digest and publish `content`; SaveFailed as `publish`."""
    start = time.perf_counter()
    filed, kept = encoded(content)
    filed["digest"] = digest.digest(filed)
    published = publish(folder, filed, best=best, keep=keep)
    seconds = time.perf_counter() - start
    return Written(published.path, published.size_bytes, seconds, kept, published.warnings)


def fork_writer(lock_descriptor: int | None) -> "Writer | None":
    """A writer, or None where the system has no fork or no unnamed memory."""
    if hasattr(os, "fork") and hasattr(os, "memfd_create"):
        return Writer(lock_descriptor)
    return None


class Writer:
    """The owner's side: one save at a time, taken over in the time of a copy."""

    def __init__(self, lock_descriptor: int | None) -> None:
        """Fork the writer, which by `lock_descriptor` keeps a folder locked while it lives.

        The earlier the better: what the owner holds now is held twice once either changes it.
        """
        self.snapshot = Snapshot()
        ours, theirs = socket.socketpair()
        self._closed = False
        owner = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            keep_open = {theirs.fileno(), self.snapshot.descriptor, lock_descriptor or 2}
            _serve(theirs, self.snapshot, owner, keep_open)
        theirs.close()
        self._socket = ours
        self._answers = ours.makefile("r", encoding="utf-8")
        self._target: Path | None = None  # the folder that is being written to

    @property
    def busy(self) -> bool:
        return self._target is not None

    def start(self, folder: Path, content: Mapping[str, Any], *, best: bool, keep: int) -> None:
        """Copy `content` and have it written; the writer must not be busy. MemoryError when there
        is no room for the copy, SaveFailed when the writer is gone."""
        end, length = self.snapshot.take(content)
        where = {"folder": str(folder.resolve()), "best": best, "keep": keep}
        order = where | {"end": end, "length": length}
        try:
            self._socket.sendall(json.dumps(order).encode() + b"\n")
        except OSError as error:
            raise self._died(folder) from error
        self._target = folder

    def result(self, *, wait: bool) -> Written | None:
        """The save under way once it is finished, None before; SaveFailed when it failed."""
        if not wait and not select.select([self._socket], [], [], 0)[0]:
            return None
        try:
            line = self._answers.readline()
        except ConnectionError:
            line = ""
        folder, self._target = self._target, None
        if not line.endswith("\n"):
            raise self._died(folder)
        answer = json.loads(line)
        if "failed" in answer:
            raise SaveFailed(*answer["failed"])
        return Written(**answer | {"path": Path(answer["path"])})

    def wait(self, seconds: float) -> None:
        """Return when no save is under way any more, or after so long; its result stays to be
        taken. Any thread may call it."""
        end = time.monotonic() + seconds
        while self.busy and time.monotonic() < end:
            if select.select([self._socket], [], [], 0.1)[0]:
                return

    def _died(self, folder: Path | None) -> SaveFailed:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return SaveFailed(0, f"the process that writes checkpoints was {how}", str(folder))

    @property
    def alive(self) -> bool:
        return self.pid != 0

    def close(self) -> None:
        """End the writer after the save under way, and give the memory back; again does nothing."""
        if self._closed:
            return
        self._closed = True
        # Shut down, not only closed: processes forked since, such as loading workers, hold copies.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._answers.close()
        self._socket.close()
        if self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0
        self.snapshot.close()


def _serve(orders: socket.socket, snapshot: Snapshot, owner: int, keep_open: set[int]) -> NoReturn:
    """The writer's life: orders in, answers out, until the owner closes the line or is gone."""
    code = 1
    try:
        _settle(owner, keep_open)
        with orders.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                answer = _obey(json.loads(line), snapshot)
                orders.sendall(json.dumps(answer).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)  # whatever the owner registered to happen at its end is the owner's


def _obey(order: dict[str, Any], snapshot: Snapshot) -> dict[str, Any]:
    folder = Path(order["folder"])
    try:
        content = snapshot.read(order["end"], order["length"])
        written = write(folder, content, best=order["best"], keep=order["keep"])
    except SaveFailed as error:
        return {"failed": [error.errno, error.strerror, error.filename]}
    except Exception as error:  # whatever it is, the owner has to hear of it
        return {"failed": [0, f"{type(error).__name__}: {error}", str(folder)]}
    return asdict(written) | {"path": str(written.path)}


def _settle(owner: int, keep_open: set[int]) -> None:
    """Become a process of its own: die with the owner, ignore what is meant for it, hold nothing
    of it (a port or a pipe held here would stay open when the owner closes it)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(0)
    signal.set_wakeup_fd(-1)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    # Replaced, not closed: an object of the owner that closes its number later must not hit a
    # file of ours that was given the same.
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number not in keep_open | {2, null}:
            os.dup2(null, number)
    os.nice(_NICENESS)
    gc.freeze()  # a collection would copy the pages shared with the owner
    torch.set_num_threads(1)  # the owner's threads are not here
