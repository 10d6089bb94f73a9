"""Batches for one rank: the order's samples fetched, moved to the device, and transformed.

Every batch is a function of (step, rank, world size), so starting at any step is free, and
fetching in this process or in workers gives the same batches.
"""

import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any

import torch

from data.fetch import Batch, Collate, Fetched, Request, fetch, fetch_ahead
from data.order import Indices, TrainOrder, share
from data.order import eval_batches as eval_parts
from data.transforms import Transform

log = logging.getLogger(__name__)

_AHEAD = 4096  # samples whose order is computed in one call, which costs as much as for a thousand


@dataclass(frozen=True)
class Source:
    """How samples become batches: what is read, by how many workers, onto which device."""

    dataset: Any
    collate: Collate
    transform: Transform
    device: torch.device
    workers: int = 0


@dataclass(slots=True)  # not frozen: that would triple what making one costs, in every step
class Piece:
    """The samples of one micro-batch, and its place in the run.

    `kept` are those it is made of; the others are neighbours that some of them are mixed with.
    """

    step: int
    epoch: int
    index: int
    samples: Indices
    kept: slice


@dataclass(slots=True)
class MicroBatch:
    """A batch on the device; `index` is its number among the micro-batches of the global batch.

    `skipped` samples could not be read: others stand in for them in training.
    """

    step: int
    index: int
    batch: Batch
    skipped: int


def micro_batches(per_rank: int, micro_batch: int | None) -> list[int]:
    """The sizes of a rank's micro-batches: as few as the cap allows, as equal as can be."""
    count = -(-per_rank // (micro_batch or per_rank))
    return [per_rank // count + (number < per_rank % count) for number in range(count)]


def train_batches(
    source: Source,
    order: TrainOrder,
    rank: int,
    world_size: int,
    micro_batch: int | None,
    start_step: int,
    stop_step: int,
) -> Generator[MicroBatch]:
    """Rank's micro-batches of steps start_step..stop_step, in turn; closing it ends its workers."""
    cuts = _cuts(order.global_batch, rank, world_size, micro_batch, source.transform.mixes)
    return _delivered(source, _train_pieces(order, cuts, start_step, stop_step), rank)


def warm_up_batch(
    source: Source, order: TrainOrder, rank: int, world_size: int, micro_batch: int | None
) -> Batch:
    """Rank's first micro-batch of epoch 0, whatever step the run is at; fetched in this process."""
    return next(
        train_batches(replace(source, workers=0), order, rank, world_size, micro_batch, 0, 1)
    ).batch


def eval_batches(source: Source, batch: int, rank: int, world_size: int) -> Generator[Batch]:
    """Rank's batches of one pass over the dataset: over all ranks, every sample exactly once."""
    parts = eval_parts(len(source.dataset), batch, rank, world_size)
    pieces = (Piece(0, 0, number, samples, slice(None)) for number, samples in enumerate(parts))
    with closing(_delivered(source, pieces, rank)) as delivered:
        for item in delivered:
            yield item.batch


@dataclass(frozen=True, slots=True)
class _Cut:
    """One micro-batch of every step: the positions in the global batch to read, and to keep."""

    index: int
    read: range
    kept: slice


def _cuts(
    global_batch: int, rank: int, world_size: int, micro_batch: int | None, mixes: bool
) -> list[_Cut]:
    """Rank's micro-batches; where neighbours are mixed, each is read out to whole pairs."""
    part = share(global_batch, rank, world_size)
    sizes = micro_batches(len(part), micro_batch)
    cuts, low = [], part.start
    for index, size in enumerate(sizes, start=rank * len(sizes)):
        high = low + size
        read = range(low, high)
        if mixes:
            read = range(low - low % 2, min(high + high % 2, global_batch))
        cuts.append(_Cut(index, read, slice(low - read.start, high - read.start)))
        low = high
    return cuts


def _train_pieces(
    order: TrainOrder, cuts: list[_Cut], start_step: int, stop_step: int
) -> Iterator[Piece]:
    read = range(cuts[0].read.start, cuts[-1].read.stop)
    step = start_step
    while step < stop_step:
        epoch, done = divmod(step, order.steps_per_epoch)
        ahead = min(stop_step - step, order.steps_per_epoch - done, max(1, _AHEAD // len(read)))
        for row in order.table(step, ahead, read):
            for cut in cuts:
                samples = row[cut.read.start - read.start : cut.read.stop - read.start]
                yield Piece(step, epoch, cut.index, samples, cut.kept)
            step += 1


def _delivered(source: Source, pieces: Iterator[Piece], rank: int) -> Generator[MicroBatch]:
    """The transformed batch of each piece of which anything can be read, on the device."""
    with closing(_fetched(source, pieces)) as fetched:
        ready = _transformed(source, fetched, rank)
        yield from _one_ahead(ready, source.device) if source.device.type == "cuda" else ready


def _fetched(source: Source, pieces: Iterator[Piece]) -> Generator[tuple[Piece, Fetched]]:
    """Each piece and its batch, fetched ahead by workers, or when it is asked for."""
    dataset, collate, seed = source.dataset, source.collate, source.transform.seed
    if not source.workers:
        for piece in pieces:
            yield piece, fetch(dataset, collate, Request(piece.samples, seed, piece.epoch))
        return
    pieces, ahead = tee(pieces)
    requests = (Request(piece.samples, seed, piece.epoch) for piece in ahead)
    pin = source.device.type == "cuda"
    with closing(fetch_ahead(dataset, collate, requests, source.workers, pin)) as fetched:
        yield from zip(pieces, fetched, strict=False)


def _transformed(
    source: Source, pairs: Iterable[tuple[Piece, Fetched]], rank: int
) -> Iterator[MicroBatch]:
    transform, mixes = source.transform, source.transform.mixes
    on_gpu = source.device.type == "cuda"
    told: set[int] = set()
    for piece, (batch, skipped) in pairs:
        samples, missing = piece.samples, 0
        if skipped:
            _tell_skipped(skipped, told, rank)
            missing = sum(sample in skipped for sample in samples[piece.kept].tolist())
            if batch is None:
                continue
            samples = batch["sample"].numpy()
        assert batch is not None
        if on_gpu:
            batch = _copied(batch, source.device)
        batch = transform(batch, samples, piece.epoch)
        if mixes:
            batch = {name: value[piece.kept] for name, value in batch.items()}
        yield MicroBatch(piece.step, piece.index, batch, missing)


def _tell_skipped(skipped: dict[int, str], told: set[int], rank: int) -> None:
    """Say of each skipped sample why it is, once."""
    for sample, reason in skipped.items():
        if sample not in told:
            log.warning("rank %d skips sample %d: %s", rank, sample, reason)
    told.update(skipped)


def _copied(batch: Batch, device: torch.device) -> Batch:
    """The batch on its way to a GPU from pinned memory; the host does not wait for it."""
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}


def _one_ahead(ready: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Each item, while the next one is copied and transformed on a stream beside the caller's."""
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream(device))  # which makes the transform's constants

    def begin() -> tuple[MicroBatch | None, torch.cuda.Event]:
        with torch.cuda.stream(beside):
            return next(ready, None), beside.record_event()

    item, copied = begin()
    while item is not None:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for value in item.batch.values():
            value.record_stream(current)  # or its memory may be reused before the caller is done
        following = begin()
        yield item
        item, copied = following
