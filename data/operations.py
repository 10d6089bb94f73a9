"""The operations of RandAugment and TrivialAugment on batches of uint8 images (B, C, H, W).

`strength` (B,) float32 on the images' device says how much, for each image. They follow
torchvision's of the same names, but for nearest-neighbour ties.
"""

import torch
from torch import Tensor

_SOFTENED = 13  # sum of the 3 x 3 kernel with 5 in the middle and 1 around it


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Brighter by the factor 1 + strength."""
    return _blend(images, torch.zeros_like(images), strength)


def color(images: Tensor, strength: Tensor) -> Tensor:
    """More colourful by the factor 1 + strength; images that are not RGB have no colour."""
    if images.shape[1] != 3:
        return images
    return _blend(images, _grey(images), strength)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Further from its mean brightness by the factor 1 + strength."""
    grey = _grey(images).flatten(1)
    mean = grey.long().sum(1).float() / grey.shape[1]  # of whole numbers: exact in any order
    return _blend(images, mean.view(-1, 1, 1, 1), strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Further from its softened self by the factor 1 + strength; the border stays."""
    if min(images.shape[2:]) < 3:
        return images
    whole = images.int()
    height, width = images.shape[2:]
    around = sum(
        whole[:, :, down : height - 2 + down, across : width - 2 + across]
        for down in range(3)
        for across in range(3)
    )
    soft = images.clone()
    total = around + 4 * whole[:, :, 1:-1, 1:-1]
    soft[:, :, 1:-1, 1:-1] = (total.float() / _SOFTENED).round_().to(torch.uint8)
    return _blend(images, soft, strength)


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """With `strength` of the eight bits of each value dropped."""
    kept = (0xFF << strength.round().int()) & 0xFF
    return images & kept.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """With the values from 255 * (1 - strength) up turned into their negative."""
    threshold = (255 * (1 - strength)).view(-1, 1, 1, 1)
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Each channel stretched to 0..255; a flat one stays."""
    low = images.amin((2, 3), keepdim=True).float()
    high = images.amax((2, 3), keepdim=True).float()
    scale = torch.where(high > low, 255 / (high - low), 1.0)
    low = torch.where(high > low, low, 0.0)
    return ((images - low) * scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Each channel with its values spread so that all are equally frequent."""
    values = images.flatten(2).flatten(0, 1).long()  # (B * C, H * W)
    ones = torch.ones_like(values)
    counts = torch.zeros(len(values), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, values, ones)
    levels = torch.arange(256, device=images.device)
    brightest = ((counts > 0) * levels).amax(1, keepdim=True)
    step = (values.shape[1] - counts.gather(1, brightest)) // 255
    table = ((counts.cumsum(1) - counts) + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp_(max=255), levels)  # too few values: as it is
    return table.gather(1, values).to(torch.uint8).view(images.shape)


def warped(images: Tensor, maps: Tensor) -> Tensor:
    """Each image (C, H, W) looked up through its affine map; black where that leads outside.

    maps (B, 2, 3) float32 take (x, y, 1) of a pixel to the place, nearest, its value comes from.
    """
    count, channels, height, width = images.shape
    x = torch.arange(width, dtype=torch.float32, device=images.device)
    y = torch.arange(height, dtype=torch.float32, device=images.device)[:, None]
    across, down = (
        (row[:, 0, None, None] * x + row[:, 1, None, None] * y + row[:, 2, None, None]).round_()
        for row in maps.unbind(1)
    )
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    place = (down * width + across).mul_(inside).long().view(count, 1, -1)
    found = images.flatten(2).gather(2, place.expand(-1, channels, -1))
    return found.view(images.shape) * inside[:, None]


def _grey(images: Tensor) -> Tensor:
    """Brightness of RGB images, (B, 1, H, W) uint8; others count as grey already."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.float().unbind(1)
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue
    return grey.to(torch.uint8)[:, None]


def _blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """`images` moved away from `other` by `strength`, or towards it where that is negative."""
    factor = (1 + strength).view(-1, 1, 1, 1)
    return (images * factor + other * (1 - factor)).clamp_(0, 255).to(torch.uint8)
