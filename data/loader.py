"""Batches for one rank: the order's samples fetched, moved to the device, and transformed.

Every batch is a function of (step, rank, world size), so starting at any step is free, and
fetching in this process or in workers gives the same batches.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any

import torch

from data.fetch import Batch, Collate, fetch_ahead, fetch_in_turn
from data.order import Indices, TrainOrder, share
from data.order import eval_batches as eval_parts
from data.transforms import Transform

_AHEAD = (
    4096  # samples whose order is computed in one call: a call costs as much as a thousand of them
)


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
    """A batch on the device; `index` is its number among the micro-batches of the global batch."""

    step: int
    index: int
    batch: Batch


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
    return _delivered(source, pieces)


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
    with closing(_delivered(source, pieces)) as delivered:
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


def _delivered(source: Source, pieces: Iterator[Piece]) -> Generator[MicroBatch]:
    """The transformed batch of each piece, on the device."""
    pieces, ahead = tee(pieces)
    parts = (piece.samples for piece in ahead)
    on_gpu = source.device.type == "cuda"
    if source.workers:
        fetched = fetch_ahead(source.dataset, source.collate, parts, source.workers, pin=on_gpu)
    else:
        fetched = fetch_in_turn(source.dataset, source.collate, parts)
    with closing(fetched):
        ready = (
            _transformed(source, piece, batch)
            for piece, batch in zip(pieces, fetched, strict=False)
        )
        yield from _one_ahead(ready, source.device) if on_gpu else ready


def _transformed(source: Source, piece: Piece, batch: Batch) -> MicroBatch:
    if source.device.type == "cuda":
        batch = {
            name: value.pin_memory().to(source.device, non_blocking=True)
            for name, value in batch.items()
        }
    return MicroBatch(piece.step, piece.index, source.transform(batch, piece.samples, piece.epoch))


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
