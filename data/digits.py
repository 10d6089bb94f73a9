"""Handwritten digits, 8 x 8 grey, that come with scikit-learn: real data without a download."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from configs.schema import Data
from data.memory import MemoryImages, moments, resized
from data.split import held_out
from utils.errors import BadInput
from utils.keyed import mix

_SPLIT_KEY = 0x64696769747321  # of the held-out fifth: fixed, so that scores of all runs compare
_HELD_OUT = 0.2


def digits(section: Data, split: str) -> MemoryImages:
    """The 1,438 training or 359 held-out digits, brightness 0..16 scaled to 0..255."""
    table = _read_table()
    grey = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    images = resized(torch.from_numpy(grey), section.image_size)
    labels = torch.from_numpy(table[:, 64]).long()
    drawn = mix(_SPLIT_KEY, np.arange(len(labels)))
    apart = torch.from_numpy(held_out(labels.numpy(), drawn, _HELD_OUT))
    chosen = apart if split == "val" else ~apart
    classes = [str(digit) for digit in range(10)]
    return MemoryImages(images[chosen], labels[chosen], classes, *moments(images[~apart]))


def _read_table() -> NDArray[np.float64]:
    """scikit-learn's own file, (1797, 65): 64 brightnesses and the digit.

    Read without importing scikit-learn, which costs a second for 57 kB.
    """
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise BadInput("data.name: the digits come with scikit-learn; pip install scikit-learn")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(file, "rt") as lines:
        return np.loadtxt(lines, delimiter=",")
