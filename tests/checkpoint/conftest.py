"""Stores whose writers end with the test, and the proof that nothing is left of them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from checkpoint.store import SaveFailed, Store

OpenStore = Callable[..., Store]


def children() -> set[int]:
    """The processes that this one started and has not waited for."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """`Store`, closed at the end of the test; the test fails when a process of it is left."""
    before = children()
    stores: list[Store] = []

    def opened(folder: Path, keep: int = 2, **more: object) -> Store:
        stores.append(Store(folder, keep, **more))  # type: ignore[arg-type]
        return stores[-1]

    yield opened
    for keeper in stores:
        with suppress(SaveFailed):
            keeper.close()
    assert children() <= before
