"""Image files in one folder a class, decoded and cropped in the workers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import Data
from data.crop import Box, centre_box, random_box
from data.manifest import Manifest, manifest
from data.order import Indices
from data.split import held_out
from utils.errors import BadInput
from utils.keyed import mix
from utils.names import near

# What networks pretrained on ImageNet expect, and no worse than others for those that are not.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZE = 224
_SPLIT_KEY = 0x666F6C64657273
_CROP, _STAND_IN = 2, 3  # purposes of draws
_STAND_INS = 20


@dataclass(frozen=True)
class ImageFolder:
    """Image files by number; in training `key` draws the crops."""

    files: Manifest
    chosen: Indices | None  # the files that are samples; None: all of them
    labels: NDArray[np.int32]  # of the samples
    classes: list[str]
    section: Data
    training: bool
    key: int = 0

    channels = 3
    mean, std = MEAN, STD

    @property
    def image_size(self) -> int:
        """Height and width of an image, pixels."""
        return self.section.image_size or _SIZE

    @property
    def centre_crop(self) -> float:
        """Side of evaluation's crop as a share of the shorter side."""
        return self.section.eval_crop

    @property
    def skips_bad_images(self) -> bool:
        """Whether an image that cannot be read is left out instead of stopping the run."""
        return self.section.on_bad_image == "skip"

    def __len__(self) -> int:
        return len(self.labels)

    def in_epoch(self, seed: int, epoch: int) -> "ImageFolder":
        """The same files with the crops of an epoch."""
        return replace(self, key=int(mix(seed, epoch, _CROP)))

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        """uint8 (3, S, S) and the label; BadImage names the file."""
        from data.decode import cropped_image  # Pillow, which no other dataset needs

        path = self.files.path(sample if self.chosen is None else int(self.chosen[sample]))

        def box(width: int, height: int) -> Box:
            if not self.training:
                return centre_box(width, height, self.section.eval_crop)
            augment = self.section.augment
            key = mix(self.key, sample)
            return random_box(width, height, key, augment.crop_area, augment.crop_ratio)

        return cropped_image(path, box, self.image_size), int(self.labels[sample])

    def stand_ins(self, sample: int) -> Iterator[int]:
        """The samples to train on in place of one that cannot be read: a function of it alone.

        None in evaluation, where one more would count twice.
        """
        if not self.training:
            return
        for attempt in range(_STAND_INS):
            yield int(mix(_STAND_IN, sample, attempt)) % len(self)
        raise BadInput(f"none of {_STAND_INS} other images can be read either: is the disk there?")


def image_folder(section: Data, split: str) -> ImageFolder:
    """The images of path/train and path/val, or of one folder whose held-out part a key chooses."""
    if section.path is None or not section.path.is_dir():
        raise BadInput(
            f"data.path: image_folder needs the folder that holds train/ and val/, or one folder a "
            f"class; {section.path or 'null'} is not a folder"
        )
    train, val = section.path / "train", section.path / "val"
    if val.is_dir() and not train.is_dir():
        raise BadInput(f"data.path: {section.path} has a folder val, but no folder train")
    files = manifest(train if train.is_dir() else section.path)
    if not val.is_dir():
        chosen = _part(files, split, section.held_out)
        return _folder(section, split, files, files.classes, chosen, files.labels[chosen])
    if split == "train":
        return _folder(section, split, files, files.classes, None, files.labels)
    classes = files.classes
    files = manifest(val)
    labels = np.array([_label(name, classes, val) for name in files.classes], dtype=np.int32)
    return _folder(section, split, files, classes, None, labels[files.labels])


def _folder(
    section: Data,
    split: str,
    files: Manifest,
    classes: list[str],
    chosen: Indices | None,
    labels: NDArray[np.int32],
) -> ImageFolder:
    return ImageFolder(files, chosen, labels, classes, section, training=split == "train")


def _part(files: Manifest, split: str, part: float) -> Indices:
    """The files of a split; by the hashes of their names, so that new files move few old ones."""
    apart = held_out(files.labels, mix(_SPLIT_KEY, files.hashes), part)
    return np.flatnonzero(apart if split == "val" else ~apart)


def _label(name: str, classes: list[str], val: Path) -> int:
    if name not in classes:
        raise BadInput(f"{val / name}: train/ has no class '{name}' {near(name, classes)}".rstrip())
    return classes.index(name)
