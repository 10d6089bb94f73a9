"""Samples read into batches, in this process or in workers that end when this process does."""

import atexit
import ctypes
import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.order import Indices
from utils.errors import BadInput

Batch = dict[str, Tensor]
Collate = Callable[[list[Any]], Batch]

_PR_SET_PDEATHSIG = 1


def fetch(dataset: Any, collate: Collate, samples: Indices) -> Batch:
    """The batch of `samples` as the dataset has them, with their numbers as `sample` (B,) int64.

    A dataset with `__getitems__` hands over a whole batch; the task collates those of another.
    """
    if hasattr(dataset, "__getitems__"):
        batch: Batch = dataset.__getitems__(samples)
    else:
        batch = collate([dataset[sample] for sample in samples.tolist()])
    batch["sample"] = torch.from_numpy(samples)
    return batch


def fetch_in_turn(dataset: Any, collate: Collate, parts: Iterable[Indices]) -> Generator[Batch]:
    """The batch of each part, fetched in this process when it is asked for."""
    return (fetch(dataset, collate, samples) for samples in parts)


def fetch_ahead(
    dataset: Any, collate: Collate, parts: Iterable[Indices], workers: int, pin: bool
) -> Generator[Batch]:
    """The batch of each part, in order, fetched ahead by worker processes; pinned if `pin`.

    The workers are closed with the iterator, at the latest when this process exits.
    """
    with warnings.catch_warnings(), _blocked_signals():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
        loader = DataLoader(
            _Parts(dataset, collate),
            batch_size=None,
            sampler=parts,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=partial(_end_with, os.getpid()),
            generator=torch.Generator(),  # or starting workers would draw from the global one
            multiprocessing_context="fork",  # shares the dataset and torch with this process
        )
        batches: Any = iter(loader)
    # Workers are deaf to SIGTERM, so multiprocessing's own end-of-process join would wait for ever.
    atexit.register(batches._shutdown_workers)
    try:
        for batch in batches:
            if isinstance(batch, BadInput):
                raise batch
            yield batch
    finally:
        atexit.unregister(batches._shutdown_workers)
        batches._shutdown_workers()


class _Parts(Dataset[Batch | BadInput]):
    """A dataset whose items are batches."""

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self._dataset, self._collate = dataset, collate

    def __getitem__(self, samples: Indices) -> Batch | BadInput:
        try:
            return fetch(self._dataset, self._collate, samples)
        except BadInput as reason:  # as a value: a raised one would arrive wrapped in a traceback
            return reason


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes started here are deaf to SIGTERM and SIGINT from their first instruction on.

    A launcher and a terminal signal the workers as well as their parent, which alone decides.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int, worker: int) -> None:
    """Have the kernel kill this worker when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        os._exit(1)
