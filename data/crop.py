"""Where to cut an image: keyed random boxes in training, the centre in evaluation."""

import math

from utils.keyed import Words, mix, uniforms

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels

_TRIES = 10


def random_box(
    width: int, height: int, key: Words, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A box inside width x height that covers a part in `area` of it, width over height in `ratio`.

    Ratios are drawn evenly on a logarithmic scale. When ten draws do not fit, as in a panorama,
    the box is the largest central one with a ratio in range.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for part, shape, across, down in (
        uniforms(mix(key, 0)[None], 4 * _TRIES).reshape(-1, 4).tolist()
    ):
        pixels = width * height * (area[0] + (area[1] - area[0]) * part)
        proportion = math.exp(low + (high - low) * shape)
        wide, tall = round(math.sqrt(pixels * proportion)), round(math.sqrt(pixels / proportion))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int((width - wide + 1) * across), int((height - tall + 1) * down)
            return left, top, left + wide, top + tall
    return _central(width, height, min(width, height * ratio[1]), min(height, width / ratio[0]))


def centre_box(width: int, height: int, part: float) -> Box:
    """The central square whose side is `part` of the shorter side."""
    side = min(width, height) * part
    return _central(width, height, side, side)


def _central(width: int, height: int, wide: float, tall: float) -> Box:
    left, top = (width - wide) / 2, (height - tall) / 2
    return left, top, left + wide, top + tall
