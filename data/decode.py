"""An image file to pixels, by Pillow.

torchvision's JPEG decoder is 1.2-1.5 times as fast on images of 250 to 650 pixels, but costs every
process 1.6 s of import, and decodes large photographs in full: Pillow scales a 12-megapixel one
while decoding, in 15 ms for torchvision's 52. It also reads every other format.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data.crop import Box
from data.fetch import BadImage

# From 89 megapixels on Pillow warns, from 179 on it refuses, which is the one we want.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def cropped_image(path: Path, box_of: Callable[[int, int], Box], size: int) -> Tensor:
    """uint8 (3, size, size): the box that `box_of` chooses from (width, height), resized.

    Bilinear with antialiasing. Raises BadImage on anything that is not a whole image.
    """
    try:
        with Image.open(path) as image:
            pixels = _cropped(image, box_of, size)
    except UnidentifiedImageError:
        raise BadImage(f"{path} is not an image") from None
    except OSError as reason:
        raise BadImage(f"{path} cannot be read: {reason.strerror or reason}") from reason
    except Exception as reason:  # what Pillow's parsers raise on damaged files is anything
        raise BadImage(f"{path} cannot be read: {reason or type(reason).__name__}") from reason
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _cropped(
    image: Image.Image, box_of: Callable[[int, int], Box], size: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    width, height = image.size
    left, top, right, bottom = box_of(width, height)
    # A JPEG may be decoded at 1/2, 1/4 or 1/8, as long as the box has no fewer pixels than asked.
    image.draft("RGB", (int(width * size / (right - left)), int(height * size / (bottom - top))))
    wide, tall = image.size
    across, down = wide / width, tall / height
    box = (left * across, top * down, min(right * across, wide), min(bottom * down, tall))
    return np.array(_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=box))


def _rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB; 16-bit grey is scaled, where Pillow itself would clip."""
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is unknown")
    return image.convert("RGB")
