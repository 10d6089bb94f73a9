"""One checkpoint from memory to a durable name, and the names around it.

The order is what makes a crash harmless: a temporary file is written, synced and read back; only
then does it get its name; only then do `last.pt` and `best.pt` move; only then is anything deleted.
"""

import errno
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoint.open import look, read
from utils.durable import sync_folder, write_atomic
from utils.errors import BadInput

STEP_FILE = re.compile(r"step-(\d{8,})\.pt")
# The temporary names of this file, and those of `utils.durable.write_atomic` (`.NAME.PID.tmp`).
_TEMPORARY = re.compile(r"\.((step-\d{8,}|last|best)\.pt\..+|.+\.\d+)\.tmp")
_LEDGER = ".written.json"
_BUFFER = 1 << 18
_LARGEST_WRITE = 1 << 30  # Linux writes 2 GB at most at a time

# What a filesystem without hard links answers.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}


class SaveFailed(OSError):
    """A checkpoint was not written: errno, the reason in words, and the file."""


@dataclass(frozen=True)
class Published:
    path: Path
    size_bytes: int
    warnings: list[str]


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of each `step-NNNNNNNN.pt` in `folder`, oldest first."""
    found = [(STEP_FILE.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def step_inside(path: Path) -> int:
    """The step that a checkpoint says it is of, unverified; -1 when it does not say."""
    try:
        tree = look(path).tree
        return int(tree["cursor"]["step"])
    except (BadInput, KeyError, TypeError, ValueError):
        return -1


def publish(folder: Path, content: dict[str, Any], *, best: bool, keep: int) -> Published:
    """Write `content`, which carries its digest, as the checkpoint of its cursor's step.

    Also moves `last.pt`, with `best` also `best.pt`, and deletes the oldest checkpoints that this
    run wrote until `keep` are left. SaveFailed leaves what was there before as it was.
    """
    final = folder / f"step-{content['cursor']['step']:08d}.pt"
    temporary = _temporary(final)
    with _reasons(temporary, final):
        _write(temporary, content)
        _read_back(temporary, content["digest"])
        _sync_rows(folder)
        size = temporary.stat().st_size
        ledger = _note(folder, temporary, final.name, best)
        temporary.rename(final)
        sync_folder(folder)
        _move(folder / "last.pt", final)
        if best:
            _move(folder / "best.pt", final)
        sync_folder(folder)
    return Published(final, size, _retain(folder, ledger, keep))


def clear_temporaries(folder: Path) -> list[str]:
    """Remove what a killed save left; the caller holds the folder's lock. The names removed."""
    stale = [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]
    for path in stale:
        path.unlink(missing_ok=True)
    return [path.name for path in stale]


def _temporary(path: Path) -> Path:
    nonce = secrets.token_hex(4)
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{nonce}.tmp")


@contextmanager
def _reasons(temporary: Path, final: Path) -> Iterator[None]:
    """On any failure remove `temporary`; of the disk's, raise SaveFailed with its own reason."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, BadInput) and isinstance(error.__cause__, OSError):
            error = error.__cause__  # the disk refused to be read, which is not damage
        if isinstance(error, OSError):
            reason = f"{error.strerror or error} while saving {final}"
            path = str(error.filename or final)
            raise SaveFailed(error.errno or errno.EIO, reason, path) from error
        if isinstance(error, BadInput):
            reason = f"what was written is not what is read back ({error})"
            raise SaveFailed(errno.EIO, reason, str(final)) from error
        raise


class _File:
    """A file that remembers why a write failed: `torch.save` reports "unexpected pos" instead."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o666)
        self.error: OSError | None = None
        self._small = bytearray()  # a small tensor is several writes of a few bytes

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) + len(self._small) < _BUFFER:
            self._small += view
        else:
            self.flush()
            self._write_through(view)
        return len(view)

    def flush(self) -> None:
        waiting, self._small = self._small, bytearray()
        self._write_through(memoryview(waiting))

    def _write_through(self, view: memoryview) -> None:
        done = 0
        try:
            while done < len(view):
                done += os.write(self.descriptor, view[done : done + _LARGEST_WRITE])
        except OSError as error:
            self.error = self.error or error
            raise


def _write(path: Path, content: dict[str, Any]) -> None:
    """`content` at `path`, on the disk. After a failed fsync the kernel may call lost pages clean,
    so nothing is tried again on the same file: the next save writes a new one."""
    file = _File(path)
    try:
        try:
            torch.save(content, file)  # type: ignore[arg-type]
            file.flush()
        except RuntimeError:
            if file.error is not None:
                raise file.error from None
            raise
        os.fsync(file.descriptor)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(file.descriptor)


def _read_back(path: Path, expected: str) -> None:
    """Read the file from the disk as any reader would; BadInput unless it holds what it should."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Without the pages that the write left in memory, the disk itself has to answer.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    if read(path).get("digest") != expected:
        raise BadInput("another digest")


def _sync_rows(folder: Path) -> None:
    """A checkpoint must not outlive the metrics rows up to its step."""
    try:
        descriptor = os.open(folder / "metrics.jsonl", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_ledger(folder: Path) -> dict[str, Any]:
    """{"files": {name: [bytes, mtime in ns]}, "best": name | None}: what this run wrote here."""
    try:
        ledger: dict[str, Any] = json.loads((folder / _LEDGER).read_text())
    except (FileNotFoundError, ValueError):
        return {"files": {}, "best": None}  # nothing is deleted that is not known to be ours
    return ledger


def _note(folder: Path, temporary: Path, name: str, best: bool) -> dict[str, Any]:
    """Enter the file in the ledger before it gets its name, so that none is ever unknown."""
    ledger = read_ledger(folder)
    files = {old: mark for old, mark in ledger["files"].items() if (folder / old).exists()}
    files[name] = _mark(temporary)
    ledger = {"files": files, "best": name if best else ledger["best"]}
    write_atomic(folder / _LEDGER, json.dumps(ledger).encode())
    return ledger


def _mark(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _move(name: Path, target: Path) -> None:
    """Make `name` the file `target`: a hard link, or a copy where links are refused; atomic."""
    if name.exists() and name.samefile(target):
        return  # rename does nothing between two links of one file
    temporary = _temporary(name)
    try:
        try:
            os.link(target, temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(target, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(name)
    finally:
        temporary.unlink(missing_ok=True)


def _retain(folder: Path, ledger: dict[str, Any], keep: int) -> list[str]:
    """Delete the oldest checkpoints of the ledger until `keep` (two at least) stay, never the best
    and never a file that is not as this run wrote it. A warning for each deletion refused."""
    warnings: list[str] = []
    ours = []
    for step, path in step_files(folder):
        if ledger["files"].get(path.name) == _mark(path):
            ours.append((step, path))
    for _, path in ours[: -max(keep, 2)]:
        if path.name == ledger["best"]:
            continue
        try:
            path.unlink()
        except OSError as error:
            warnings.append(f"could not delete the old checkpoint {path}: {error.strerror}")
    return warnings
