"""FashionMNIST: 28 x 28 grey photographs of clothes, 60,000 to train on and 10,000 held out."""

from pathlib import Path

import torch

from configs.schema import Data
from data.download import alone
from data.idx import read_idx
from data.memory import MemoryImages, resized
from utils.errors import BadInput

CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
_MOMENTS = ((0.28604,), (0.35302,))  # of the 60,000 training images
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_USUAL = (Path("datasets"), _DEBIAN)


def fashion_mnist(section: Data, split: str) -> MemoryImages:
    """The dataset from torchvision's layout or a plain folder of its IDX files, gzipped or not."""
    folders = (section.path,) if section.path else _USUAL
    if section.download and not _files(folders, "train"):
        _download(folders[0])
    files = _files(folders, split)
    if files is None:
        raise BadInput(_missing(folders))
    images, labels = (read_idx(file) for file in files)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise BadInput(
            f"{files[0]} has {images.shape[0]} images and {files[1]} {labels.shape[0]} labels"
        )
    pixels = resized(torch.from_numpy(images[:, None]), section.image_size)
    return MemoryImages(pixels, torch.from_numpy(labels).long(), CLASSES, *_MOMENTS)


def _files(folders: tuple[Path, ...], split: str) -> tuple[Path, Path] | None:
    """The files of images and labels in the first folder that has both."""
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for folder in folders:
        for inside in (folder, folder / "raw", folder / "FashionMNIST" / "raw"):
            images, labels = (_plain_or_gzipped(inside / name) for name in names)
            if images and labels:
                return images, labels
    return None


def _plain_or_gzipped(path: Path) -> Path | None:
    choices = (path, path.with_name(path.name + ".gz"))
    return next((choice for choice in choices if choice.is_file()), None)


def _download(root: Path) -> None:
    """Let torchvision fetch the files into `root`; they are checked against its digests."""
    from torchvision.datasets import FashionMNIST  # a second to import, and only needed here

    with alone(root):
        try:
            FashionMNIST(str(root), download=True)
        except (OSError, RuntimeError) as reason:
            raise BadInput(f"FashionMNIST could not be fetched into {root}: {reason}") from reason


def _missing(folders: tuple[Path, ...]) -> str:
    places = " or ".join(str(folder) for folder in folders)
    return (
        f"data.name: FashionMNIST is not in {places}; fetch it with data.download=true, "
        f"or `apt-get install dataset-fashion-mnist` and data.path={_DEBIAN}"
    )
