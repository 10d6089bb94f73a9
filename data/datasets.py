"""The table of datasets, and what every one of them offers to the loader."""

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from configs.schema import Data
from data.cifar10 import cifar10
from data.described import Described
from data.digits import digits
from data.fashion_mnist import fashion_mnist
from data.image_folder import image_folder
from utils.names import is_function_path, load_function, pick


class Dataset(Protocol):
    """Images with labels, by number.

    A dataset also has `__getitem__(sample) -> (image uint8 (C, S, S), label int)`, or, where a
    whole batch comes cheaper, `__getitems__(samples int64 (B,)) -> {"image", "label"}`. One whose
    samples change by epoch has `in_epoch(seed, epoch)`, which returns the dataset of that epoch.
    A user's needs only items, a length and `classes` (data/described.py fills in the rest).
    """

    @property
    def classes(self) -> list[str]:
        """Name of each label."""
        ...

    @property
    def channels(self) -> int:
        """Channels of an image."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of an image, pixels."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images, on the 0..1 scale."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images, on the 0..1 scale."""
        ...

    @property
    def centre_crop(self) -> float | None:
        """Side of the central square that an image is cut to, by its shorter side; None: uncut."""
        ...

    def __len__(self) -> int: ...


DATASETS: dict[str, Callable[[Data, str], Any]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "image_folder": image_folder,
}


@cache  # a user's file is run once
def require_dataset(name: str) -> Callable[[Data, str], Any]:
    """The builder in the table, or of `path/to/file.py:function`; BadInput when there is none."""
    if is_function_path(name):
        function = load_function(name, "dataset")
        return lambda section, split: Described(function(section, split), name)
    return pick(DATASETS, name, "dataset")


def build_dataset(section: Data, split: str) -> Dataset:
    """The "train" or "val" part of the dataset `section.name`; BadInput when it is not there."""
    dataset: Dataset = require_dataset(section.name)(section, split)
    return dataset
