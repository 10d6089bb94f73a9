"""A dataset written by the user, with what it does not say of itself filled in."""

from typing import Any

import numpy as np
from torch import Tensor, uint8

from utils.errors import BadInput

_MIDDLE = 0.5  # mean and deviation for want of others: pixels come to lie in -1..1


class Described:
    """A user's dataset; everything it has itself is taken as it is."""

    centre_crop = None

    def __init__(self, dataset: Any, name: str) -> None:
        """Looks at sample 0; BadInput, naming `name`, when the loader could not use the dataset."""
        self._dataset, self._name = dataset, name
        if not hasattr(dataset, "classes"):
            raise BadInput(f"{name}: the dataset needs `classes`, the list of its labels' names")
        if not hasattr(dataset, "__len__") or not len(dataset):
            raise BadInput(f"{name}: the dataset needs a length above 0")
        self.channels, height, width = _first_image(dataset, name).shape
        self.image_size = height
        if height != width and not hasattr(dataset, "image_size"):
            raise BadInput(f"{name}: images must be square, sample 0 is {height} x {width} pixels")
        self.mean = self.std = (_MIDDLE,) * self.channels
        for known in ("channels", "image_size", "mean", "std", "centre_crop"):
            setattr(self, known, getattr(dataset, known, getattr(self, known)))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, sample: int) -> Any:
        """The user's own item; BadInput when its label is none of the classes."""
        item = self._dataset[sample]
        label = item[1] if isinstance(item, tuple) and len(item) == 2 else None
        # A GPU would report it much later, and without a number.
        if isinstance(label, int) and not 0 <= label < len(self._dataset.classes):
            known = len(self._dataset.classes)
            raise BadInput(f"{self._name}: sample {sample} has label {label} of {known} classes")
        return item

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # not there yet: a copy in the making
            raise AttributeError(name)
        return getattr(self._dataset, name)


def _first_image(dataset: Any, name: str) -> Tensor:
    """The image of sample 0, (C, H, W) uint8."""
    if hasattr(dataset, "__getitems__"):
        image = dataset.__getitems__(np.array([0]))["image"][0]
    else:
        image = dataset[0][0]
    if not isinstance(image, Tensor) or image.dtype != uint8 or image.ndim != 3:
        kind = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image)
        raise BadInput(f"{name}: an image must be a uint8 tensor (C, H, W); sample 0 is {kind}")
    return image
