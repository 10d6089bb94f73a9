"""CIFAR-10: 32 x 32 photographs of ten kinds, 50,000 to train on and 10,000 held out.

The binary version is read: the Python version is pickles, which run code when they are opened.
"""

import tarfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from configs.schema import Data
from data.download import alone
from data.memory import MemoryImages, resized
from utils.durable import write_atomic
from utils.errors import BadInput

CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
_MOMENTS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # of the 50,000 training images
_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside it
_FOLDER = "cifar-10-batches-bin"
_FILES = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "val": ["test_batch.bin"],
}
_IMAGE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue


def cifar10(section: Data, split: str) -> MemoryImages:
    """The dataset from the folder `cifar-10-batches-bin`, or the folder that holds it."""
    root = section.path or Path("datasets")
    if section.download and _folder(root) is None:
        _download(root)
    folder = _folder(root)
    if folder is None:
        raise BadInput(_missing(root))
    records = np.concatenate([_records(folder / name) for name in _FILES[split]])
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, *_IMAGE)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    pixels = resized(torch.from_numpy(images), section.image_size)
    return MemoryImages(pixels, labels, CLASSES, *_MOMENTS)


def _folder(root: Path) -> Path | None:
    """Where all files are, if anywhere."""
    names = [name for part in _FILES.values() for name in part]
    for folder in (root, root / _FOLDER):
        if all((folder / name).is_file() for name in names):
            return folder
    return None


def _records(file: Path) -> NDArray[np.uint8]:
    """(N, 3073) uint8: N records of a label and an image."""
    content = np.fromfile(file, dtype=np.uint8)
    if not len(content) or len(content) % _RECORD:
        raise BadInput(f"{file} is damaged: {len(content)} bytes are no number of whole images")
    records = content.reshape(-1, _RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise BadInput(f"{file} is damaged: it has a label {records[:, 0].max()} of 0 to 9")
    return records


def _download(root: Path) -> None:
    """Fetch the archive, check it, and write the files in it that are known by name."""
    from torchvision.datasets.utils import download_url  # a second to import, needed only here

    with alone(root):
        if _folder(root) is not None:  # another process was first
            return
        try:
            download_url(_URL, str(root), md5=_MD5)
        except (OSError, RuntimeError) as reason:
            raise BadInput(f"CIFAR-10 could not be fetched into {root}: {reason}") from reason
        (root / _FOLDER).mkdir(exist_ok=True)
        archive = root / Path(_URL).name
        with tarfile.open(archive) as opened:
            for name in (name for part in _FILES.values() for name in part):
                member = opened.extractfile(f"{_FOLDER}/{name}")
                assert member is not None  # its md5 is that of an archive which has them all
                write_atomic(root / _FOLDER / name, member.read())
        archive.unlink()


def _missing(root: Path) -> str:
    pickles = root / "cifar-10-batches-py"
    aside = f" ({pickles} is the Python version, made of pickles)" if pickles.is_dir() else ""
    return (
        f"data.name: the binary version of CIFAR-10 is not in {root}{aside}; fetch it with "
        f"data.download=true, or unpack {_URL} there"
    )
