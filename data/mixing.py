"""Mixup and cutmix: each image mixed with its neighbour in the global batch, and back.

Position p is mixed with p xor 1, so that who is mixed with whom does not depend on how the batch
is shared out. A pair draws from the sample at its even position.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.device import boxes, onto
from utils.keyed import uniforms

_GRID = 4096


def mixed(
    batch: dict[str, Tensor], keys: NDArray[np.uint64], mixup: float, cutmix: float
) -> dict[str, Tensor]:
    """The batch with `image` mixed, and with what the loss needs to know of it.

    `partner_label` (B,) int64 is the label of what was mixed in, `own_share` (B,) float32 in [0, 1]
    the part of the image that is still its own. The batch begins at an even position; `keys` (B,)
    are the samples'; `mixup` and `cutmix` are the parameters of the Beta distribution that the
    share is drawn from, 0 for never. With both, each pair draws which.
    """
    image = batch["image"]
    count, height, width = image.shape[0], image.shape[2], image.shape[3]
    partner = np.arange(count) ^ 1
    partner[partner == count] = count - 1  # the last of an odd global batch is alone
    drawn = uniforms(keys[np.arange(count) & ~1], 4)
    cuts = (drawn[:, 0] < 0.5) & (mixup > 0) & (cutmix > 0) | (mixup == 0)
    share = np.empty(count)
    for chosen, alpha in ((cuts, cutmix), (~cuts, mixup)):
        if chosen.any():
            share[chosen] = symmetric_beta(drawn[chosen, 1], alpha)
    edges = _cut(share, drawn[:, 2:], width, height) * cuts
    left, top, right, bottom = edges
    share = np.where(cuts, 1 - (right - left) * (bottom - top) / (width * height), share)

    other = onto(image, partner)
    own_share = onto(image, share.astype(np.float32))
    blend = onto(image, np.where(cuts, 1, share).astype(np.float32)).view(-1, 1, 1, 1)
    others = image.index_select(0, other)
    image = image * blend + others * (1 - blend)
    image = torch.where(boxes(image, edges), others, image)
    partner_label = batch["label"].index_select(0, other)
    return {**batch, "image": image, "partner_label": partner_label, "own_share": own_share}


def _cut(
    share: NDArray[np.float64], middle: NDArray[np.float64], width: int, height: int
) -> NDArray[np.int64]:
    """(4, B): a box about a random middle; inside the image, it leaves `share` of it or more."""
    side = np.sqrt(1 - share)
    half_width, half_height = side * width / 2, side * height / 2
    across, down = middle[:, 0] * width, middle[:, 1] * height
    edges = np.stack(
        [across - half_width, down - half_height, across + half_width, down + half_height]
    )
    limits = np.array([width, height, width, height])[:, None]
    return np.clip(np.round(edges), 0, limits).astype(np.int64)


def symmetric_beta(uniform: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Beta(alpha, alpha) numbers of numbers in [0, 1): the quantile function, by a table."""
    level, half = _quantiles(alpha)
    lower = np.interp(np.minimum(uniform, 1 - uniform), level, half) ** (1 / min(alpha, 1))
    return np.where(uniform < 0.5, lower, 1 - lower)


@cache
def _quantiles(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distribution function of x in [0, 1/2], and x**p, with p the lower of alpha and 1.

    Below alpha = 1 the density x**(alpha-1) * (1-x)**(alpha-1) is infinite at 0; over t = x**p it
    is x**(alpha-p) * (1-x)**(alpha-1), which is finite.
    """
    power = min(alpha, 1)
    grid = np.linspace(0, 0.5**power, _GRID)
    x = grid ** (1 / power)
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    level = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return level / level[-1] / 2, grid
