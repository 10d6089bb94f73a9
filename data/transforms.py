"""What is done to a batch before the network sees it: whole batches at a time, on their device.

A sample's augmentation is drawn from (seed, epoch, sample) alone, so that it is the same in
whatever batch, rank or restart the sample comes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import Augment
from data import erase, policies
from data.datasets import Dataset
from data.fetch import Batch
from data.mixing import mixed
from data.order import Indices
from data.shift import shift_and_flip
from utils.keyed import mix, uniforms

# Purposes of draws: each has numbers of its own, whatever else is switched on.
_SHIFT_AND_FLIP, _POLICY, _ERASE, _MIX = 1, 4, 5, 6


class Transform(Protocol):
    """What makes a fetched batch the network's; `seed` draws what workers do to samples, too."""

    @property
    def seed(self) -> int: ...

    @property
    def mixes(self) -> bool:
        """Whether it needs whole pairs of neighbours in the global batch."""
        ...

    def __call__(self, batch: Batch, samples: Indices, epoch: int) -> Batch:
        """The batch with `image` as float32, for the `samples` (B,) that it holds."""
        ...


@dataclass(frozen=True)
class TrainTransform:
    """Augments and normalises."""

    normalise: Callable[[Tensor], Tensor]
    augment: Augment
    seed: int

    @property
    def mixes(self) -> bool:
        """Whether neighbours in the global batch are mixed."""
        return self.augment.mixup > 0 or self.augment.cutmix > 0

    def __call__(self, batch: Batch, samples: Indices, epoch: int) -> Batch:
        """The batch with its images augmented as in `epoch`."""
        image, augment = batch["image"], self.augment
        if augment.pad or augment.flip:
            drawn = uniforms(self._keys(samples, epoch, _SHIFT_AND_FLIP), 3)
            image = shift_and_flip(image, augment.pad, augment.flip, drawn)
        if augment.policy:
            image = self._by_policy(image, samples, epoch)
        image = self.normalise(image)
        if augment.erase:
            drawn = uniforms(self._keys(samples, epoch, _ERASE), erase.DRAWS)
            image = erase.erased(image, augment.erase, drawn)
        batch = {**batch, "image": image}
        if self.mixes:
            keys = self._keys(samples, epoch, _MIX)
            batch = mixed(batch, keys, augment.mixup, augment.cutmix)
        return batch

    def _by_policy(self, image: Tensor, samples: Indices, epoch: int) -> Tensor:
        augment = self.augment
        assert augment.policy is not None
        count = augment.operations if augment.policy == "randaugment" else 1
        magnitude = augment.magnitude if augment.policy == "randaugment" else None
        drawn = uniforms(self._keys(samples, epoch, _POLICY), count * policies.DRAWS)
        for number in range(count):
            own = drawn[:, number * policies.DRAWS :][:, : policies.DRAWS]
            image = policies.augmented(image, augment.policy, magnitude, own)
        return image

    def _keys(self, samples: Indices, epoch: int, purpose: int) -> NDArray[np.uint64]:
        return mix(self.seed, epoch, samples, purpose)


@dataclass(frozen=True)
class EvalTransform:
    """Normalises."""

    normalise: Callable[[Tensor], Tensor]
    seed: int = 0
    mixes: bool = False

    def __call__(self, batch: Batch, samples: Indices, epoch: int) -> Batch:
        """The batch with its images normalised, whatever the epoch."""
        return {**batch, "image": self.normalise(batch["image"])}


def train_transform(
    dataset: Dataset, augment: Augment, seed: int, device: torch.device
) -> TrainTransform:
    """The augmentation of a run, on `device`."""
    return TrainTransform(_normaliser(dataset, device), augment, seed)


def eval_transform(dataset: Dataset, device: torch.device) -> EvalTransform:
    """No augmentation, on `device`."""
    return EvalTransform(_normaliser(dataset, device))


def preprocess(dataset: Dataset) -> dict[str, Any]:
    """What it takes to feed an image to the trained network elsewhere, as plain values.

    An image is cut to the central square of `centre_crop` times its shorter side (None: it is
    taken whole), resized to `image_size`, scaled to 0..1, less `mean`, divided by `std`.
    """
    return {
        "image_size": dataset.image_size,
        "channels": dataset.channels,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "centre_crop": dataset.centre_crop,
        "interpolation": "bilinear, antialiased",
    }


def _normaliser(dataset: Dataset, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 (B, C, H, W) -> float32 of mean 0 and deviation 1 over the training images."""
    offset, scale = (
        torch.tensor(values, dtype=torch.float64).mul(255).float().view(-1, 1, 1).to(device)
        for values in (dataset.mean, dataset.std)
    )
    scale = scale.reciprocal()
    # Two correctly rounded operations: no fused multiply-add, whose use depends on the batch.
    return lambda images: images.float().sub_(offset).mul_(scale)
