"""Numbers drawn on the CPU, on the device of the images they are for."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def onto(images: Tensor, values: NDArray[Any]) -> Tensor:
    """`values` as a tensor on the device of `images`; nobody waits for a GPU."""
    tensor = torch.from_numpy(values)
    if images.device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(images.device, non_blocking=True)


def boxes(images: Tensor, edges: NDArray[Any]) -> Tensor:
    """bool (B, 1, H, W), true inside each image's box; edges (4, B) are left, top, right, bottom.

    A box whose right is not right of its left is empty.
    """
    left, top, right, bottom = onto(images, edges).view(4, -1, 1, 1, 1)
    across = torch.arange(images.shape[3], device=images.device)
    down = torch.arange(images.shape[2], device=images.device)[:, None]
    inside: Tensor = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    return inside
