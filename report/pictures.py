"""Images inside the page."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LARGEST = 128  # pixels: more would only make the page heavy
_EXACT = 64  # up to here every pixel is kept


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image (H, W, C) uint8 of 1 or 3 channels (of others, the first) as a `data:` address."""
    pixels = image if image.shape[2] == 3 else image[:, :, 0]
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    kind = "png" if max(picture.size) <= _EXACT else "jpeg"
    file = io.BytesIO()
    picture.save(file, format=kind, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
