"""Letters between ranks through the launcher's store: none while all is well.

A rank waits for its next letter in one blocking call, so that a letter is read at once and waiting
costs nothing. Only the rank that has something to say does work that grows with the world size.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

_FOREVER = timedelta(days=20)  # poll() counts milliseconds in 31 bits

Letter = dict[str, Any]


class Mail:
    """This rank's letter box, and everybody else's; every call is quiet before `open`, and when
    the store is gone."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._connection: TCPStore | None = None
        self._attempt = f"lockstep/{start_name()}"

    def open(self) -> Iterator[Letter]:
        """Connect to the store, which has to be there; this rank's letters as they arrive, until
        the store is gone."""
        self._connection = connect()
        return self._letters(connect())  # who waits for a letter keeps a connection busy

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def _store(self) -> TCPStore:
        if self._connection is None:
            raise RuntimeError("the mail is not open")
        return self._connection

    def send(self, ranks: Iterable[int], letter: Letter) -> None:
        """Put `letter` (JSON types) into the boxes of `ranks`."""
        text = json.dumps(letter)
        with suppress(RuntimeError):
            for rank in ranks:
                number = self._store.add(f"{self._attempt}/letters/{rank}", 1)
                self._store.set(f"{self._attempt}/letter/{rank}/{number}", text)

    def send_others(self, letter: Letter) -> None:
        """Put `letter` into every box but this rank's."""
        self.send((rank for rank in range(self.world_size) if rank != self.rank), letter)

    def _letters(self, box: TCPStore) -> Iterator[Letter]:
        number = 0
        with suppress(RuntimeError):
            while True:
                number += 1
                key = f"{self._attempt}/letter/{self.rank}/{number}"
                box.wait([key], _FOREVER)
                yield json.loads(box.get(key))

    def count(self, name: str, by: int = 1) -> int:
        """Add `by` to the number `name`, shared by all ranks; its new value, 0 without a store."""
        with suppress(RuntimeError):
            return int(self._store.add(f"{self._attempt}/{name}", by))
        return 0

    def leave(self, name: str, value: Letter) -> None:
        """Let anyone find `value` under `name`."""
        with suppress(RuntimeError):
            self._store.set(f"{self._attempt}/{name}", json.dumps(value))

    def find(self, name: str) -> Letter | None:
        """What was left under `name`, without waiting."""
        key = f"{self._attempt}/{name}"
        with suppress(RuntimeError):
            if self._store.check([key]):
                letter: Letter = json.loads(self._store.get(key))
                return letter
        return None


def connect(timeout_s: float = 10.0) -> TCPStore:
    """A connection to the store of this job."""
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


def has_launcher_store() -> bool:
    """Whether the launcher, and no rank, holds the store: it is there before ranks meet."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def start_name() -> str:
    """What tells the ranks of this start, in the keys of the store, from those of all others.

    Hosts of an elastic job count their own failures; it has a number of its starts beside them.
    """
    return os.environ.get("LOCKSTEP_START") or str(failures())


def is_elastic() -> bool:
    """Whether hosts of this job may leave, and the others go on."""
    return "LOCKSTEP_START" in os.environ


def failures() -> int:
    """How often the launcher has restarted this host's ranks because some failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def remember(name: str, text: str) -> None:
    """Keep `text` for the processes that the launcher starts when it restarts this job."""
    if has_launcher_store():
        connect().set(f"lockstep/{name}", text)


def recall(name: str) -> str | None:
    """What an earlier start of this job kept under `name`; None when this is the first."""
    if not has_launcher_store():
        return None
    store, key = connect(), f"lockstep/{name}"
    return store.get(key).decode() if store.check([key]) else None
