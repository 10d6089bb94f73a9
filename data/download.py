"""Downloading a dataset when several processes may want it at once."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make `folder` and hold its lock: of all processes of a machine one at a time is inside.

    Those that waited find the work done, so no rank has to be told which of them does it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
