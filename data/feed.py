"""What one rank is fed: its batches of training from any step on, and of an evaluation."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs.schema import Config
from data import pictures
from data.datasets import Dataset
from data.fetch import Batch, Collate
from data.loader import (
    MicroBatch,
    Source,
    eval_batches,
    micro_batches,
    train_batches,
    warm_up_batch,
)
from data.order import TrainOrder, share
from data.transforms import eval_transform, preprocess, train_transform


class Feed:
    """Two datasets, the order of the first, and rank's part of both on its device."""

    def __init__(
        self,
        config: Config,
        train: Dataset,
        held_out: Dataset,
        collate: Collate,
        place: tuple[int, int, torch.device],
        cap: int | None,
    ) -> None:
        """`place`: rank, world size, device; `cap`: most samples of one forward.

        BadInput when the training set does not fill one global batch.
        """
        self._rank, self._world_size, device = place
        self._cap, self._eval_batch = cap, config.train.evaluation_batch
        self.classes, self.channels = train.classes, train.channels
        self.order = TrainOrder(len(train), config.train.global_batch, config.seed)
        augmented = train_transform(train, config.data.augment, config.seed, device)
        workers = config.data.workers
        self._train = Source(train, collate, augmented, device, workers)
        self._held_out = Source(
            held_out, collate, eval_transform(held_out, device), device, workers
        )

    @property
    def sizes(self) -> dict[str, int]:
        """What every rank must have found: the number of samples of each part."""
        held_out = len(self._held_out.dataset)
        return {"training samples": self.order.size, "held-out samples": held_out}

    @property
    def micro_batches(self) -> list[int]:
        """The sizes of this rank's forward passes in one step."""
        own = share(self.order.global_batch, self._rank, self._world_size)
        return micro_batches(len(own), self._cap)

    def training(self, start: int, stop: int) -> Generator[MicroBatch]:
        """The micro-batches of steps start..stop; closing it ends its workers."""
        return train_batches(
            self._train, self.order, self._rank, self._world_size, self._cap, start, stop
        )

    def first(self) -> Batch:
        """The first micro-batch of epoch 0, whatever step the run is at."""
        return warm_up_batch(self._train, self.order, self._rank, self._world_size, self._cap)

    def evaluation(self) -> Generator[Batch]:
        """This rank's batches of one pass over the held-out samples."""
        return eval_batches(self._held_out, self._eval_batch, self._rank, self._world_size)

    @property
    def common_batches(self) -> int:
        """The number of evaluation batches that every rank has."""
        return -(-len(self._held_out.dataset) // self._eval_batch) // self._world_size

    def preprocess(self) -> dict[str, Any]:
        """What it takes to feed an image to the trained network elsewhere."""
        return preprocess(self._train.dataset)

    def pictures(self, samples: list[int]) -> tuple[list[int], NDArray[np.uint8]]:
        """(samples, their images uint8 (N, H, W, C)) of held-out samples that can be read."""
        return pictures.pictures(self._held_out, samples)

    def as_seen(self, batch: Batch) -> NDArray[np.uint8]:
        """The images of a training batch without their normalisation, uint8 (N, H, W, C)."""
        return pictures.as_seen(batch, self._train.dataset)
