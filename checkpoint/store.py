"""The checkpoints of one run folder: save, and find the newest good one."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.open import read_checkpoint
from checkpoint.publish import (
    SaveFailed,
    clear_temporaries,
    step_files,
    step_inside,
)
from checkpoint.snapshot import free_memory
from checkpoint.writer import Writer, Written, fork_writer, write
from utils.errors import BadInput

__all__ = ["Found", "SaveFailed", "Saved", "Store", "load", "newest_good"]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """What one save cost: the seconds that the loop waited, and the seconds until it was durable
    and read back, which with its size are None while it is under way."""

    path: Path
    stall_s: float
    write_s: float | None
    size_bytes: int | None


@dataclass(frozen=True)
class Found:
    path: Path
    content: dict[str, Any]  # verified, as it lies in the file
    refused: list[str]  # newer files, each with its reason


def load(path: Path) -> dict[str, Any]:
    """A checkpoint whose digest was checked, as it lies in the file (`state.restored` goes on).

    BadInput when it is missing, damaged or no checkpoint; one line is logged when it has no digest.
    """
    content = read_checkpoint(path)
    if "digest" not in content:
        LOG.warning("%s is unverified: it carries no digest", path)
    return content


def newest_good(folder: Path) -> Found | None:
    """The newest checkpoint of `folder` that is intact, or None when there is none at all.

    BadInput, with each file's reason, when there are some and all are damaged.
    """
    refused: list[str] = []
    for path in _candidates(folder):
        try:
            return Found(path, load(path), refused)
        except BadInput as error:
            refused.append(str(error))
    if refused:
        raise BadInput("no checkpoint of this run is intact:\n  " + "\n  ".join(refused))
    return None


def _candidates(folder: Path) -> list[Path]:
    """The step files, and `last.pt` and `best.pt` where they are other files; newest step first."""
    found = step_files(folder) if folder.is_dir() else []
    seen = {path.stat().st_ino for _, path in found}
    for path in (folder / "last.pt", folder / "best.pt"):
        if path.is_file() and path.stat().st_ino not in seen:
            found.append((step_inside(path), path))
            seen.add(path.stat().st_ino)
    return [path for _, path in sorted(found, reverse=True)]


class Store:
    """Writes the checkpoints of a folder that nobody else writes in (`RunFolder.store`)."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        writer: Writer | None = None,
        saving: "threading.Lock | None" = None,  # a function up to Python 3.12
    ) -> None:
        """Take over `writer`, or fork one; what a killed save left in `folder` is removed.

        `saving` is held while the loop stops for a save.
        """
        self._folder = folder
        self._keep = keep
        self._saving = saving or threading.Lock()
        self._told: set[str] = set()
        self._done: Saved | None = None
        self._under_way: Saved | None = None
        for name in clear_temporaries(folder):
            LOG.warning("removed %s, which a killed save left in %s", name, folder)
        self._writer = writer or fork_writer(None)
        if self._writer is None:
            self._say("the loop stops while checkpoints are written: this system cannot fork")

    def save(self, content: Mapping[str, Any], step: int, best: bool = False) -> Saved:
        """Save what `state.capture` gave, as the checkpoint of `step`; never touches its tensors.

        Waits for the save before, copies `content`, and leaves the rest to the writer. SaveFailed
        (an OSError) tells of the save before when that one failed (this one is under way then), or
        of this one when it was written here. Either leaves the checkpoints before it untouched.
        """
        if content["cursor"]["step"] != step:
            raise ValueError(f"the cursor says step {content['cursor']['step']}, not {step}")
        start = time.perf_counter()
        earlier = self._failure()
        path = self._folder / f"step-{step:08d}.pt"
        with self._saving:
            written = None
            if not self._hand_over(content, best):
                written = write(self._folder, content, best=best, keep=self._keep)
        if written is None:
            saved = self._under_way = Saved(path, time.perf_counter() - start, None, None)
        else:
            saved = self._note(written, time.perf_counter() - start)
        if earlier is not None:
            raise earlier
        return saved

    def done(self) -> Saved | None:
        """The newest save that is on the disk, without waiting; SaveFailed once for one that is
        not, as soon as that is known."""
        self._collect(wait=False)
        return self._done

    def wait(self) -> Saved | None:
        """The newest save once it is on the disk, None when none was; SaveFailed as `done`."""
        self._collect(wait=True)
        return self._done

    def close(self) -> None:
        """Wait for the last save and end the writer; SaveFailed as `done`."""
        earlier = self._failure()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if earlier is not None:
            raise earlier

    def _failure(self) -> SaveFailed | None:
        """Wait for the save under way; what went wrong with it."""
        try:
            self._collect(wait=True)
        except SaveFailed as error:
            return error
        return None

    def _collect(self, *, wait: bool) -> None:
        if self._writer is None or not self._writer.busy:
            return
        written = self._writer.result(wait=wait)
        if written is not None:
            assert self._under_way is not None
            self._note(written, self._under_way.stall_s)

    def _note(self, written: Written, stall_s: float) -> Saved:
        """Remember a finished save, and say what it has to tell, each thing once."""
        self._done = Saved(written.path, stall_s, written.seconds, written.size_bytes)
        for warning in written.warnings:
            self._say(warning)
        new = [name for name in written.kept if name not in self._told]
        self._told.update(new)
        if new:
            LOG.warning("kept in float32, since half precision would break it: %s", ", ".join(new))
        return self._done

    def _hand_over(self, content: Mapping[str, Any], best: bool) -> bool:
        """Whether the writer took `content`; if not, the caller writes, and the reason is said."""
        writer = self._writer
        if writer is None:
            return False
        needed, free = writer.snapshot.needs(content), free_memory()
        if not writer.alive:
            reason = "the process that wrote them is gone"
        elif needed > free:
            reason = f"a copy needs {needed >> 20} MB of memory, {free >> 20} are free"
        else:
            try:
                writer.start(self._folder, content, best=best, keep=self._keep)
                return True
            except (MemoryError, SaveFailed) as error:
                reason = str(error)
        self._say(f"the loop stops while checkpoints are written: {reason}", once="blocking")
        return False

    def _say(self, text: str, once: str = "") -> None:
        if (once or text) not in self._told:
            self._told.add(once or text)
            LOG.warning("%s", text)
