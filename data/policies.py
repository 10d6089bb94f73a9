"""RandAugment and TrivialAugment, a whole batch at a time, with draws of each sample's own.

Cubuk et al., "RandAugment", CVPR workshops 2020; Müller and Hutter, "TrivialAugment", ICCV 2021;
ranges as in torchvision.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data import operations
from data.device import onto

Array = NDArray[np.float64]

_COLOURS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    operations.brightness,
    operations.color,
    operations.contrast,
    operations.sharpness,
    operations.posterize,
    operations.solarize,
    operations.autocontrast,
    operations.equalize,
)
_WARPS = 5  # shear and shift each way, turn; numbered after the colours, and then identity
_IDENTITY = len(_COLOURS) + _WARPS
DRAWS = 3  # of one operation: which, how much, which way
LEVELS = 31  # of magnitude, 0 to 30


@dataclass(frozen=True)
class Widest:
    """What the highest magnitude means: shares, pixels, degrees and bits."""

    shear: float
    shift_share: float  # of the side
    shift_pixels: float
    turn: float
    blend: float
    bits: float


WIDEST = {
    "randaugment": Widest(0.3, 150 / 331, 0, 30, 0.9, 4),
    "trivialaugment": Widest(0.99, 0, 32, 135, 0.99, 6),
}


def augmented(images: Tensor, policy: str, magnitude: int | None, drawn: Array) -> Tensor:
    """Each image after one operation of `policy` drawn for it; uint8 (B, C, H, W), drawn (B, 3).

    `magnitude` is one of LEVELS; None draws it too.
    """
    widest = WIDEST[policy]
    operation = (drawn[:, 0] * (_IDENTITY + 1)).astype(np.int64)
    level = np.floor(drawn[:, 1] * LEVELS) if magnitude is None else np.full(len(drawn), magnitude)
    strength = level / (LEVELS - 1)
    signed = np.where(drawn[:, 2] < 0.5, -strength, strength)
    result = images.clone()
    for number, function in enumerate(_COLOURS):
        rows = np.flatnonzero(operation == number)
        if len(rows):
            amount = _amount(function, widest, strength[rows], signed[rows])
            index = onto(images, rows)
            part = function(images.index_select(0, index), onto(images, amount))
            result.index_copy_(0, index, part)
    rows = np.flatnonzero((operation >= len(_COLOURS)) & (operation < _IDENTITY))
    if len(rows):
        maps = _maps(operation[rows] - len(_COLOURS), signed[rows], widest, images.shape[2:])
        index = onto(images, rows)
        part = operations.warped(images.index_select(0, index), onto(images, maps))
        result.index_copy_(0, index, part)
    return result


def _amount(
    function: Callable[[Tensor, Tensor], Tensor], widest: Widest, strength: Array, signed: Array
) -> NDArray[np.float32]:
    """What `function` takes as its strength."""
    if function is operations.posterize:
        amount = np.round(strength * widest.bits)
    elif function is operations.solarize:
        amount = strength
    else:
        amount = signed * widest.blend
    return amount.astype(np.float32)


def _maps(
    warp: NDArray[np.int64], signed: Array, widest: Widest, size: tuple[int, ...]
) -> NDArray[np.float32]:
    """(B, 2, 3): for each image the affine map of its warp, from a pixel to where it comes from."""
    height, width = size
    maps = np.tile(np.eye(2, 3), (len(warp), 1, 1))
    shear_x, shear_y, shift_x, shift_y, turn = (warp == number for number in range(_WARPS))
    maps[shear_x, 0, 1] = signed[shear_x] * widest.shear
    maps[shear_y, 1, 0] = signed[shear_y] * widest.shear
    for chosen, axis, side in ((shift_x, 0, width), (shift_y, 1, height)):
        pixels = widest.shift_share * side + widest.shift_pixels
        maps[chosen, axis, 2] = np.trunc(signed[chosen] * pixels)
    angle = np.deg2rad(signed[turn] * widest.turn)
    cos, sin = np.cos(angle), np.sin(angle)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    maps[turn, 0] = np.stack([cos, -sin, middle_x - cos * middle_x + sin * middle_y], axis=1)
    maps[turn, 1] = np.stack([sin, cos, middle_y - sin * middle_x - cos * middle_y], axis=1)
    return maps.astype(np.float32)
