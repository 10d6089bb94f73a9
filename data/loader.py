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

from data.fetch import BadImage, Batch, Collate, Fetched, Request, fetch_ahead, fetch_in_turn
from data.order import Indices, TrainOrder, share
from data.order import eval_batches as eval_parts
from data.transforms import Transform
from utils.errors import BadInput

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


@dataclass(frozen=True, slots=True)
class Piece:
    """The samples of one micro-batch, and its place in the run."""

    step: int
    epoch: int
    index: int
    samples: Indices


@dataclass(frozen=True, slots=True)
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
    pieces = _train_pieces(order, rank, world_size, micro_batch, start_step, stop_step)
    return _delivered(source, pieces, rank)


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
    pieces = (Piece(0, 0, number, samples) for number, samples in enumerate(parts))
    with closing(_delivered(source, pieces, rank)) as delivered:
        for item in delivered:
            yield item.batch


def _train_pieces(
    order: TrainOrder,
    rank: int,
    world_size: int,
    micro_batch: int | None,
    start_step: int,
    stop_step: int,
) -> Iterator[Piece]:
    part = share(order.global_batch, rank, world_size)
    sizes = micro_batches(len(part), micro_batch)
    step = start_step
    while step < stop_step:
        epoch, done = divmod(step, order.steps_per_epoch)
        ahead = min(stop_step - step, order.steps_per_epoch - done, max(1, _AHEAD // len(part)))
        for row in order.table(step, ahead, part):
            low = 0
            for number, size in enumerate(sizes, start=rank * len(sizes)):
                yield Piece(step, epoch, number, row[low : low + size])
                low += size
            step += 1


def _delivered(source: Source, pieces: Iterator[Piece], rank: int) -> Generator[MicroBatch]:
    """The transformed batch of each piece of which anything can be read, on the device."""
    pieces, ahead = tee(pieces)
    requests = (Request(piece.samples, source.transform.seed, piece.epoch) for piece in ahead)
    on_gpu = source.device.type == "cuda"
    if source.workers:
        fetched = fetch_ahead(source.dataset, source.collate, requests, source.workers, pin=on_gpu)
    else:
        fetched = fetch_in_turn(source.dataset, source.collate, requests)
    ready = _transformed(source, zip(pieces, fetched, strict=False), rank)
    with closing(fetched):
        try:
            yield from _one_ahead(ready, source.device) if on_gpu else ready
        except BadImage as reason:
            raise BadInput(f"rank {rank}: {reason}") from reason.__cause__


def _transformed(
    source: Source, pairs: Iterable[tuple[Piece, Fetched]], rank: int
) -> Iterator[MicroBatch]:
    told: set[str] = set()
    for piece, (batch, skipped) in pairs:
        for reason in skipped:
            if reason not in told:
                log.warning("rank %d skips %s", rank, reason)
        told.update(skipped)
        if batch is not None:
            samples = batch["sample"].numpy()
            if source.device.type == "cuda":
                batch = _copied(batch, source.device)
            batch = source.transform(batch, samples, piece.epoch)
            yield MicroBatch(piece.step, piece.index, batch, len(skipped))


def _copied(batch: Batch, device: torch.device) -> Batch:
    """The batch on a GPU, once what is queued on the current stream is done; waits for nothing."""
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}


def _one_ahead(ready: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Each item, while the next one is copied and transformed on a stream beside the caller's."""
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

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
