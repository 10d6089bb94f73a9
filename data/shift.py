"""Random shift and mirror, a whole batch at a time."""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad as padded_with_black

from data.device import onto


def shift_and_flip(images: Tensor, pad: int, flip: bool, drawn: NDArray[np.float64]) -> Tensor:
    """Each image moved by up to `pad` pixels each way over black, half of them mirrored.

    images (B, C, H, W), drawn (B, 3) in [0, 1) -> (B, C, H, W) of the same type.
    """
    count, _, height, width = images.shape
    if flip:
        row = np.arange(count) + count * (drawn[:, 2] < 0.5)
        images = torch.cat([images, images.flip(-1)]).index_select(0, onto(images, row))
    if not pad:
        return images
    down, right = (drawn[:, :2] * (2 * pad + 1)).astype(np.int64).T
    wide = padded_with_black(images, (pad, pad, pad, pad))
    row = np.arange(count)
    if images.device.type == "cpu":  # numpy copies the same windows four times as fast
        windows = sliding_window_view(wide.numpy(), (height, width), axis=(2, 3))
        return torch.from_numpy(windows[row, :, down, right])
    place = onto(images, np.stack([row, down, right]))
    return wide.unfold(2, height, 1).unfold(3, width, 1)[place[0], :, place[1], place[2]]
