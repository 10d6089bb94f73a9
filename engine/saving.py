"""When a checkpoint is due, and what becomes of one that fails."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from checkpoint.store import SaveFailed, Store
from configs.schema import Save
from ddp.stop import Votes, Wishes

log = logging.getLogger(__name__)


class Saver:
    """Saves when the configuration says; `store` is None on every rank but 0."""

    def __init__(self, store: Store | None, save: Save, votes: Votes) -> None:
        self._store = store
        self._save = save
        self._votes = votes
        self._saved_at = time.monotonic()
        self._stall_s = 0.0
        self._failure: SaveFailed | None = None  # of the newest save

    def is_due(self, step: int, wishes: Wishes) -> bool:
        """Whether all ranks save after `step`, for its number, the clock, or a wish to stop."""
        self._watch_the_clock()
        by_step = self._save.every_steps is not None and step % self._save.every_steps == 0
        return by_step or bool(wishes.signal or wishes.save)

    def _watch_the_clock(self) -> None:
        minutes = self._save.every_minutes
        if self._store is None or minutes is None:
            return
        if time.monotonic() - self._saved_at >= 60 * minutes:
            self._saved_at = time.monotonic()
            self._votes.ask_to_save()

    def save(self, content: Mapping[str, Any], *, best: bool) -> None:
        """Write a checkpoint on rank 0; a failure stops all ranks, or is told (save.on_error)."""
        if self._store is None:
            return
        self._saved_at = time.monotonic()
        try:
            saved = self._store.save(content, content["cursor"]["step"], best)
        except SaveFailed as error:
            log.error("checkpoint not saved: %s", error)
            self._failure = error
            if self._save.on_error == "stop":
                self._votes.ask_to_end()
        else:
            self._stall_s += saved.stall_s
            self._failure = None

    def stall_s(self) -> float:
        """Seconds that saving has held up the loop since the last call."""
        stall, self._stall_s = self._stall_s, 0.0
        return stall

    def close(self) -> None:
        """Wait for the last checkpoint, on rank 0; SaveFailed when it is not there in the end."""
        if self._store is not None:
            self._store.close()
        if self._failure is not None:
            raise self._failure
