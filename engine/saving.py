"""When a checkpoint is due, and what becomes of one that fails."""

import errno
import logging
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

from checkpoint.folder import RunFolder
from checkpoint.store import SaveFailed
from configs.schema import Save
from ddp.stop import Votes, Wishes

log = logging.getLogger(__name__)

P = ParamSpec("P")


class Saver:
    """Saves when the configuration says; only rank 0 has a `folder`."""

    def __init__(self, folder: RunFolder | None, save: Save, votes: Votes) -> None:
        self._store = folder.store(save.keep) if folder else None
        self._save = save
        self._votes = votes
        self._saved_at = time.monotonic()
        self._stall_s = 0.0
        self._asked: str | None = None  # the name of the newest checkpoint asked for
        self._look = self.guarded(self._store.done) if self._store else None

    def is_due(self, step: int, wishes: Wishes) -> bool:
        """Whether all ranks save after `step`, for its number, the clock, or a wish to stop."""
        if self._look is not None:
            self._look()  # a save in the background may have failed by now
            self._watch_the_clock()
        by_step = self._save.every_steps is not None and step % self._save.every_steps == 0
        return by_step or bool(wishes.signal or wishes.save)

    def _watch_the_clock(self) -> None:
        minutes = self._save.every_minutes
        if minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes:
            self._saved_at = time.monotonic()
            self._votes.ask_to_save()

    def save(self, content: Mapping[str, Any], *, best: bool) -> None:
        """Hand a checkpoint to rank 0's store."""
        if self._store is not None:
            self._saved_at = time.monotonic()
            self.guarded(self._save_now)(content, best)

    def _save_now(self, content: Mapping[str, Any], best: bool) -> None:
        assert self._store is not None
        self._asked = f"step-{content['cursor']['step']:08d}.pt"
        self._stall_s += self._store.save(content, content["cursor"]["step"], best).stall_s

    def guarded(self, write: Callable[P, object]) -> Callable[P, None]:
        """`write`, whose failure is told, and ends all ranks together unless save.on_error says
        to continue."""

        @wraps(write)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                write(*args, **kwargs)
            except OSError as error:
                log.error("not written: %s", error)
                if self._save.on_error == "stop":
                    self._votes.ask_to_end()

        return wrapped

    def stall_s(self) -> float:
        """Seconds that saving has held up the loop since the last call."""
        stall, self._stall_s = self._stall_s, 0.0
        return stall

    def close(self) -> None:
        """Wait for the last checkpoint, on rank 0; SaveFailed when it is not there in the end."""
        if self._store is not None:
            self._store.close()
            newest = self._store.done()
            written = None if newest is None else newest.path.name
            if self._asked is not None and written != self._asked:
                raise SaveFailed(errno.EIO, "the last checkpoint was not written", self._asked)
