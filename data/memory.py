"""Images that fit in memory: one tensor, from which a batch is one gather."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from data.order import Indices

_CHUNK = 4096  # images resized at a time: bounds the float copy


@dataclass(frozen=True)
class MemoryImages:
    """A dataset in one uint8 tensor (N, C, S, S); mean and std per channel on the 0..1 scale."""

    images: Tensor
    labels: Tensor  # (N,) int64
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    centre_crop = None

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image, pixels."""
        return self.images.shape[2]

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, samples: Indices) -> dict[str, Tensor]:
        """A batch: `image` uint8 (B, C, S, S) and `label` int64 (B,)."""
        index = torch.from_numpy(samples)
        return {
            "image": self.images.index_select(0, index),
            "label": self.labels.index_select(0, index),
        }


def resized(images: Tensor, size: int | None) -> Tensor:
    """uint8 (N, C, H, W) -> (N, C, size, size), bilinear with antialiasing; size None: as it is."""
    if size is None or images.shape[2:] == (size, size):
        return images
    result = images.new_empty((*images.shape[:2], size, size))
    for low in range(0, len(images), _CHUNK):
        part = images[low : low + _CHUNK].float()
        smooth = interpolate(part, (size, size), mode="bilinear", antialias=True)
        result[low : low + _CHUNK] = smooth.round_().clamp_(0, 255)
    return result


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel of uint8 (N, C, H, W), on the 0..1 scale."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        centre = float(share @ levels)
        mean.append(centre)
        std.append(float(share @ (levels - centre).square()) ** 0.5)
    return tuple(mean), tuple(std)
