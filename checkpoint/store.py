"""The checkpoints of one run folder: save, and find the newest good one."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import digest
from checkpoint.folder import Lock
from checkpoint.open import read_checkpoint
from checkpoint.publish import (
    SaveFailed,
    clear_temporaries,
    publish,
    step_files,
    step_inside,
)
from checkpoint.state import encoded
from utils.errors import BadInput

__all__ = ["Found", "SaveFailed", "Saved", "Store", "load", "newest_good"]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """What one save cost: `stall_s` the loop waited; `write_s` is None while it is written."""

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
    """Writes the checkpoints of a run folder whose lock the caller holds; rank 0 only."""

    def __init__(self, folder: Path, keep: int, lock: Lock | None = None) -> None:
        self._lock = lock
        self._folder = folder
        self._keep = keep
        self._done: Saved | None = None
        self._warned: set[str] = set()
        for name in clear_temporaries(folder):
            LOG.warning("removed %s, which a killed save left in %s", name, folder)

    def save(self, content: Mapping[str, Any], step: int, best: bool = False) -> Saved:
        """Save what `state.capture` gave, as the checkpoint of `step`; never touches its tensors.

        SaveFailed (an OSError) when it could not be written; what was there before is untouched.
        """
        if content["cursor"]["step"] != step:
            raise ValueError(f"the cursor says step {content['cursor']['step']}, not {step}")
        start = time.perf_counter()
        filed, kept = encoded(content)
        self._say_kept(kept)
        filed["digest"] = digest.digest(filed)
        published = publish(self._folder, filed, best=best, keep=self._keep)
        seconds = time.perf_counter() - start
        self._done = Saved(published.path, seconds, seconds, published.size_bytes)
        return self._done

    def done(self) -> Saved | None:
        """The newest save that is on the disk, without waiting."""
        return self._done

    def wait(self) -> Saved | None:
        """The last save once it is on the disk, None when there was none; SaveFailed as `save`."""
        return self._done

    def close(self) -> None:
        """Wait for the last save and let the folder go."""
        self.wait()

    def _say_kept(self, kept: list[str]) -> None:
        new = [name for name in kept if name not in self._warned]
        if new:
            LOG.warning("kept in float32, since half precision would break it: %s", ", ".join(new))
            self._warned.update(new)
