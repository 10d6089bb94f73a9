"""Samples read into batches, in this process or in workers that end when this process does."""

import atexit
import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.forked import LivingForkContext, died
from data.order import Indices
from utils.errors import BadInput

Batch = dict[str, Tensor]
Collate = Callable[[list[Any]], Batch]

_PR_SET_PDEATHSIG = 1
_STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP}


class BadImage(BadInput):
    """A sample that cannot be read; the message begins with its path."""


@dataclass(slots=True)
class Request:
    """The samples of one batch, and what those that change by epoch are drawn from."""

    samples: Indices
    seed: int
    epoch: int


class Fetched(NamedTuple):
    """A batch, None if nothing of it could be read; the samples left out, and why."""

    batch: Batch | None
    skipped: dict[int, str]


def fetch(dataset: Any, collate: Collate, request: Request) -> Fetched:
    """The batch of a request, with the numbers of its samples as `sample` (B,) int64.

    A dataset with `__getitems__` hands over a whole batch; the task collates those of another.
    """
    if hasattr(dataset, "in_epoch"):
        dataset = dataset.in_epoch(request.seed, request.epoch)
    samples = request.samples
    skipped: dict[int, str] = {}
    if hasattr(dataset, "__getitems__"):
        batch: Batch = dataset.__getitems__(samples)
    else:
        rows = [_row(dataset, sample, skipped) for sample in samples.tolist()]
        there = [row is not None for row in rows]
        if not any(there):
            return Fetched(None, skipped)
        batch, samples = collate([row for row in rows if row is not None]), samples[there]
    batch["sample"] = torch.from_numpy(samples)
    return Fetched(batch, skipped)


def _row(dataset: Any, sample: int, skipped: dict[int, str]) -> Any:
    """What the dataset has at `sample`, or what stands in for an unreadable one; None: nothing."""
    try:
        return dataset[sample]
    except BadImage as reason:
        if not getattr(dataset, "skips_bad_images", False):
            raise BadImage(f"sample {sample}: {reason}") from reason.__cause__
        skipped[sample] = str(reason)
    except Exception as reason:
        reason.add_note(f"while sample {sample} was read")
        raise
    for other in dataset.stand_ins(sample):
        try:
            return dataset[other]
        except BadImage:
            continue
    return None


def fetch_ahead(
    dataset: Any, collate: Collate, requests: Iterable[Request], workers: int, pin: bool
) -> Generator[Fetched]:
    """The batch of each request, in order, fetched ahead by worker processes; pinned if `pin`.

    The workers are closed with the iterator, at the latest when this process exits.
    """
    with warnings.catch_warnings(), _blocked_signals():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
        loader = DataLoader(
            _Batches(dataset, collate),
            batch_size=None,
            sampler=requests,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=partial(_end_with, os.getpid()),
            generator=torch.Generator(),  # or starting workers would draw from the global one
            multiprocessing_context=LivingForkContext(),  # shares the dataset and torch with this
        )
        batches: Any = iter(loader)
    # Workers are deaf to SIGTERM, so multiprocessing's own end-of-process join would wait for ever.
    atexit.register(batches._shutdown_workers)
    try:
        for fetched in batches:
            if isinstance(fetched, BadInput):
                raise fetched
            yield fetched
    except (ConnectionError, EOFError) as error:  # it died while it handed over a batch
        raise died(batches._workers) or error from error
    finally:
        atexit.unregister(batches._shutdown_workers)
        batches._shutdown_workers()


class _Batches(Dataset[Fetched | BadInput]):
    """A dataset whose items are batches."""

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self._dataset, self._collate = dataset, collate

    def __getitem__(self, request: Request) -> Fetched | BadInput:
        try:
            return fetch(self._dataset, self._collate, request)
        except BadInput as reason:  # as a value: a raised one would arrive wrapped in a traceback
            return reason


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes started here are deaf to what stops a run, from their first instruction on.

    A launcher and a terminal signal the workers as well as their parent, which alone decides.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int, worker: int) -> None:
    """Have the kernel kill this worker when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        os._exit(1)
    sys.excepthook = _tells_no_lost_lines


def _tells_no_lost_lines(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """What a thread of a worker says, unless its reader went away, which tells why itself."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, where)
