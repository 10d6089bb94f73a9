"""Random erasing: a box of some images is painted over with the mean."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.device import boxes

DRAWS = 1 + 4 * 8  # whether, and eight tries of a box
_AREA = (0.02, 0.33)  # of the image
_RATIO = (0.3, 3.3)  # height over width


def erased(images: Tensor, probability: float, drawn: NDArray[np.float64]) -> Tensor:
    """`images` (B, C, H, W) with a box of each `probability`-th set to 0, their mean, in place.

    drawn (B, DRAWS) in [0, 1).
    """
    height, width = images.shape[2:]
    part, shape, across, down = drawn[:, 1:].reshape(len(drawn), -1, 4).transpose(2, 0, 1)
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * part) * height * width
    low, high = np.log(_RATIO)
    ratio = np.exp(low + (high - low) * shape)
    tall, wide = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (tall < height) & (wide < width)
    first = (np.arange(len(drawn)), fits.argmax(axis=1))
    top, left = np.floor(down * (height - tall + 1)), np.floor(across * (width - wide + 1))
    edges = np.stack([edge[first] for edge in (left, top, left + wide, top + tall)])
    edges *= (drawn[:, 0] < probability) & fits.any(axis=1)  # else an empty box
    return images.masked_fill_(boxes(images, edges.astype(np.int64)), 0.0)
