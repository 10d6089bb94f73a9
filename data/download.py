"""Downloading a dataset when several processes may want it at once."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import BadInput


@contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """Make `folder` and hold its lock: of all processes of a machine one at a time is inside.

    Those that waited find the work done, so no rank has to be told which of them does it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as reason:
        raise BadInput(f"{folder} cannot be written to: {reason.strerror}") from reason
    with file:
        yield folder
