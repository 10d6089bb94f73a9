"""Images for people: as they lie in the dataset, and as the network saw them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from data.datasets import Dataset
from data.fetch import Batch, Request, fetch
from data.loader import Source

_LARGEST = 128  # pixels: what a report needs of an image


def pictures(source: Source, samples: list[int]) -> tuple[list[int], NDArray[np.uint8]]:
    """(samples, their images uint8 (N, H, W, C)) before any transformation, of those readable."""
    request = Request(np.array(samples, dtype=np.int64), source.transform.seed, 0)
    batch = fetch(source.dataset, source.collate, request).batch if samples else None
    if batch is None:
        return [], np.zeros((0, 1, 1, 1), np.uint8)
    return batch["sample"].tolist(), _small(batch["image"])


def as_seen(batch: Batch, dataset: Dataset, most: int = 24) -> NDArray[np.uint8]:
    """The first images of a transformed batch, their normalisation undone, uint8 (N, H, W, C)."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
    return _small((batch["image"][:most].cpu().float() * std + mean).mul(255))


def _small(images: Tensor) -> NDArray[np.uint8]:
    if max(images.shape[2:]) > _LARGEST:
        images = interpolate(images.float(), (_LARGEST, _LARGEST), mode="area")
    pixels: NDArray[np.uint8] = images.round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels.transpose(0, 2, 3, 1)
