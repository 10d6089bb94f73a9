"""The folder of a run: who may write in it, what it has reached, and its rows of metrics."""

import fcntl
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from checkpoint.publish import step_files, step_inside
from checkpoint.store import Store
from checkpoint.writer import Writer, fork_writer
from utils.durable import sync_folder, write_atomic
from utils.errors import BadInput

LOG = logging.getLogger(__name__)

Resume = Literal["none", "auto", "file"]

# A killed run's writer dies within milliseconds of it; a disk in trouble may hold it longer.
_DYING_S = 30.0


class Lock:
    """The right to write in a folder, held until `release`, or until the process and the writers
    that inherited `descriptor` are gone; BadInput names the holder. Makes the folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / ".lock"
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
            )
            self._acquire(folder)
            if self._is_at(path):
                break
            os.close(self.descriptor)  # who held it has removed it, with the folder
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)

    def _acquire(self, folder: Path) -> None:
        end = time.monotonic() + _DYING_S
        while not self._try():
            holder = _holder(self.descriptor)
            if _alive(holder) or time.monotonic() > end:
                os.close(self.descriptor)
                raise BadInput(
                    f"{folder} is in use by {holder[0] or 'another run'}; wait for it, or give "
                    "this run another run.name"
                )
            time.sleep(0.05)

    def _try(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _is_at(self, path: Path) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.descriptor), path.lstat())
        return False

    def release(self) -> None:
        os.close(self.descriptor)


def _holder(descriptor: int) -> tuple[str, int | None]:
    """Who wrote the lock file: in words, and the process id when it is on this host."""
    words = os.pread(descriptor, 300, 0).decode(errors="replace").split()
    if len(words) != 2 or not words[0].isdigit():
        return "", None
    local = words[1] == socket.gethostname()
    return f"process {words[0]} on {words[1]}", int(words[0]) if local else None


def _alive(holder: tuple[str, int | None]) -> bool:
    """Whether waiting is pointless: the owner lives, or may live on another host."""
    words, pid = holder
    if pid is None:
        return bool(words)
    try:
        # A zombie still has a process id, and will not write again.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


class Metrics:
    """`metrics.jsonl`: one row, a JSON object, a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is on the disk before the next checkpoint is."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class RunFolder:
    """A claimed run folder; `finished` when an earlier run in it ended with exit code 0, `is_new`
    when there was none before."""

    path: Path
    finished: bool
    is_new: bool
    lock: Lock
    writer: Writer | None
    saving: threading.Lock = field(default_factory=threading.Lock)  # held by a store that saves

    @property
    def logs(self) -> Path:
        """The folder of `rank-K.log`."""
        return self.path / "logs"

    def begin(self, config_yaml: str) -> None:
        """Write `config.yaml`, make `logs/`, and drop the `exit` file of an earlier run."""
        self.logs.mkdir(exist_ok=True)
        (self.path / "exit").unlink(missing_ok=True)
        write_atomic(self.path / "config.yaml", config_yaml.encode())

    def rewind(self, step: int) -> list[str]:
        """Undo what lies after `step`: cut the rows, set newer checkpoints aside as `*.abandoned`.

        A file that shows its step only inside (`last.pt`, `best.pt`) is set aside when it cannot be
        read. Returns the names set aside.
        """
        _cut_rows(self.path / "metrics.jsonl", step)
        newer = [path for number, path in step_files(self.path) if number > step]
        for name in ("last.pt", "best.pt"):
            path = self.path / name
            if path.exists() and not 0 <= step_inside(path) <= step:
                newer.append(path)
        for path in newer:
            path.rename(_free(path))
        if newer:
            sync_folder(self.path)
        return [path.name for path in newer]

    def metrics(self) -> Metrics:
        """The rows, open for appending."""
        return Metrics(self.path / "metrics.jsonl")

    def finish(self, code: int, reason: str) -> None:
        """Leave `code` and `reason` (one line) in `exit`, where the launcher looks."""
        line = " ".join(reason.split())
        write_atomic(self.path / "exit", f"{code} {line}\n".encode())

    def withdraw(self) -> bool:
        """Remove the folder, when it is new and no run has begun in it; whether it was so."""
        if not self.is_new or (self.path / "starts.jsonl").exists():
            return False
        shutil.rmtree(self.path, ignore_errors=True)  # what failed is told, not this
        return True

    def store(self, keep: int) -> Store:
        """The checkpoints of this folder, of which the newest `keep` stay."""
        return Store(self.path, keep, self.writer, self.saving)

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way."""
        return self.saving.locked() or (self.writer is not None and self.writer.busy)

    def finish_save(self, seconds: float) -> None:
        """Wait for the save under way, but no longer than that; any thread may call it."""
        end = time.monotonic() + seconds
        if self.saving.acquire(timeout=seconds):
            self.saving.release()
        if self.writer is not None:
            self.writer.wait(end - time.monotonic())

    def release(self) -> None:
        """End the writer after the save under way, and let the folder go."""
        if self.writer is not None:
            self.writer.close()
        self.lock.release()


def claim(parent: Path, name: str, resume: Resume) -> RunFolder:
    """The folder of run `name` under `parent`, made when absent, and locked against other runs.

    Without resuming ("none"), an unfinished run is a BadInput that names `--resume auto`, and a
    finished one leads to the next free name. "auto" and "file" take the folder as it is. The
    process that will write its checkpoints is forked here, before there is a model to copy.
    """
    path = parent / name
    if resume == "none":
        number = 2
        while _exit_code(path) == 0:
            path = parent / f"{name}-{number}"
            number += 1
        if path.name != name:
            LOG.info("%s is finished: this run is %s", parent / name, path)
    try:
        is_new = not path.exists()
        lock = Lock(path)
    except OSError as error:
        raise BadInput(f"run folder {path}: {error.strerror} (run.dir, run.name)") from error
    if resume == "none" and _started(path):
        lock.release()
        go_on = "--resume auto" + (f" run.name={path.name}" if path.name != name else "")
        raise BadInput(f"{path} holds an unfinished run: go on with `{go_on}`, or give this run "
                       "another run.name")  # fmt: skip
    return RunFolder(path, _exit_code(path) == 0, is_new, lock, fork_writer(lock.descriptor))


def _started(path: Path) -> bool:
    """Whether a run in `path` has something to lose: rows or checkpoints."""
    rows = path / "metrics.jsonl"
    return bool(step_files(path)) or (rows.exists() and rows.stat().st_size > 0)


def _exit_code(path: Path) -> int | None:
    """The code in `exit`; None without one, or when it cannot be read."""
    try:
        return int((path / "exit").read_text().split()[0])
    except (FileNotFoundError, NotADirectoryError, ValueError, IndexError):
        return None


def _cut_rows(path: Path, step: int) -> None:
    """Keep the rows up to `step`; a last line that a kill cut off goes too."""
    if not path.exists():
        return
    kept = b""
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
            break
        kept += line
    write_atomic(path, kept)


def _free(path: Path) -> Path:
    """`path` with `.abandoned`, numbered when that is taken."""
    aside = path.with_name(f"{path.name}.abandoned")
    number = 2
    while aside.exists():
        aside = path.with_name(f"{path.name}.abandoned-{number}")
        number += 1
    return aside
