"""What is done to a batch before the network sees it: whole batches at a time, on their device.

A sample's augmentation is drawn from (seed, epoch, sample) alone, so that it is the same in
whatever batch, rank or restart the sample comes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad as padded_with_black

from configs.schema import Augment
from data.datasets import Dataset
from data.fetch import Batch
from data.order import Indices
from utils.keyed import mix, uniforms

_SHIFT_AND_FLIP = 1  # purpose of a draw: each has numbers of its own, whatever else is switched on


class Transform(Protocol):
    """What makes a fetched batch the network's; `seed` draws what workers do to samples, too."""

    @property
    def seed(self) -> int: ...

    def __call__(self, batch: Batch, samples: Indices, epoch: int) -> Batch:
        """The batch with `image` as float32, for the `samples` (B,) that it holds."""
        ...


@dataclass(frozen=True)
class TrainTransform:
    """Augments and normalises."""

    normalise: Callable[[Tensor], Tensor]
    augment: Augment
    seed: int

    def __call__(self, batch: Batch, samples: Indices, epoch: int) -> Batch:
        """The batch with its images augmented as in `epoch`."""
        image, augment = batch["image"], self.augment
        if augment.pad or augment.flip:
            drawn = uniforms(mix(self.seed, epoch, samples, _SHIFT_AND_FLIP), 3)
            image = shift_and_flip(image, augment.pad, augment.flip, drawn)
        return {**batch, "image": self.normalise(image)}


@dataclass(frozen=True)
class EvalTransform:
    """Normalises."""

    normalise: Callable[[Tensor], Tensor]
    seed: int = 0

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


def shift_and_flip(images: Tensor, pad: int, flip: bool, drawn: NDArray[np.float64]) -> Tensor:
    """Each image moved by up to `pad` pixels each way over black, half of them mirrored.

    images (B, C, H, W), drawn (B, 3) in [0, 1) -> (B, C, H, W) of the same type.
    """
    count, _, height, width = images.shape
    if flip:
        row = np.arange(count) + count * (drawn[:, 2] < 0.5)
        images = torch.cat([images, images.flip(-1)]).index_select(0, _onto(images, row))
    if not pad:
        return images
    down, right = (drawn[:, :2] * (2 * pad + 1)).astype(np.int64).T
    wide = padded_with_black(images, (pad, pad, pad, pad))
    row = np.arange(count)
    if images.device.type == "cpu":  # numpy copies the same windows four times as fast
        windows = sliding_window_view(wide.numpy(), (height, width), axis=(2, 3))
        return torch.from_numpy(windows[row, :, down, right])
    place = _onto(images, np.stack([row, down, right]))
    return wide.unfold(2, height, 1).unfold(3, width, 1)[place[0], :, place[1], place[2]]


def _onto(images: Tensor, values: NDArray[Any]) -> Tensor:
    """`values` as a tensor on the device of `images`, without waiting for the device."""
    tensor = torch.from_numpy(values)
    if images.device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(images.device, non_blocking=True)


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
