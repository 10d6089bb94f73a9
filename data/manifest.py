"""The image files of a folder, scanned once: one flat file that every rank and worker maps.

A list of a million names costs gigabytes in a hundred processes, and scanning as often as there
are ranks takes a file server down. The manifest is one buffer of names, offsets and labels, of
which a machine holds one copy in its page cache.
"""

import hashlib
import json
import mmap
import os
import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.download import alone
from utils.durable import write_atomic
from utils.errors import BadInput

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_FORMAT = 1
_DEEPEST = 30  # folders inside a class folder
_SETTLED_S = 2.0  # a folder changed later than this before its scan may change again unseen


@dataclass(frozen=True)
class Manifest:
    """N image files under `root`, sorted by class and name."""

    root: Path
    classes: list[str]
    labels: NDArray[np.int32]  # (N,)
    offsets: NDArray[np.int64]  # (N + 1,): where the name of each file begins in `names`
    names: NDArray[np.uint8]  # of all files, relative to `root`
    hashes: NDArray[np.uint32]  # (N,): of the names, to draw from whatever else is in the folder

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> bytes:
        """The path of file `index`, relative to `root`."""
        return self.names[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def path(self, index: int) -> Path:
        """The path of file `index`."""
        return self.root / os.fsdecode(self.name(index))


def manifest(root: Path) -> Manifest:
    """The images in the class folders of `root`, from its manifest if no folder has changed.

    Of all processes that ask, one scans. BadInput when there are no classes, or an empty one.
    """
    with alone(_cache()) as folder:
        file = folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.manifest"
        found = _read(file, root)
        if found is None:
            try:
                _scan(root, file)
            except OSError as reason:
                raise BadInput(f"{reason.filename} cannot be read: {reason.strerror}") from reason
            found = _read(file, root, fresh=True)
    assert found is not None
    return found


def _cache() -> Path:
    """Where manifests are kept: image folders are often read-only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lockstep"


def _scan(root: Path, file: Path) -> None:
    """Write the manifest of `root` to `file`."""
    started = time.time()
    labels, offsets, names, hashes = array("i"), array("q", [0]), bytearray(), array("I")
    folders = {"": root.stat().st_mtime_ns}
    classes = [name for name, is_folder in _entries(root) if is_folder]
    for label, folder in enumerate(classes):
        for name in _images(root, folder, folders):
            names += name
            labels.append(label)
            offsets.append(len(names))
            hashes.append(zlib.crc32(name))
        if not labels or labels[-1] != label:
            raise BadInput(
                f"{root / folder}: a class folder without an image (of {', '.join(EXTENSIONS)})"
            )
    if not classes:
        raise BadInput(f"{root}: there are no class folders with images in it")
    header = {
        "format": _FORMAT,
        "classes": classes,
        "files": len(labels),
        "folders": folders,
        "settled": max(folders.values()) / 1e9 < started - _SETTLED_S,
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at multiples of their size
    start = len(text).to_bytes(8, "little") + text
    write_atomic(file, b"".join((start, offsets, labels, hashes, names)))


def _read(file: Path, root: Path, *, fresh: bool = False) -> Manifest | None:
    """The manifest in `file`; None when there is none, or a folder has changed since.

    `fresh` believes it without a look at the folders.
    """
    if not file.exists():
        return None
    with file.open("rb") as opened:
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if not fresh and not _is_current(header, root):
        return None
    count = header["files"]
    offsets = np.frombuffer(content, np.int64, count + 1, start)
    labels = np.frombuffer(content, np.int32, count, start + offsets.nbytes)
    hashes = np.frombuffer(content, np.uint32, count, start + offsets.nbytes + labels.nbytes)
    names = np.frombuffer(content, np.uint8, offset=len(content) - int(offsets[-1]))
    return Manifest(root, header["classes"], labels, offsets, names, hashes)


def _is_current(header: dict[str, Any], root: Path) -> bool:
    """Whether no folder was changed since the scan: adding or removing a file changes its time."""
    if header["format"] != _FORMAT or not header["settled"]:
        return False
    try:
        return all(
            (root / folder).stat().st_mtime_ns == changed
            for folder, changed in header["folders"].items()
        )
    except OSError:  # a folder is gone
        return False


def _images(root: Path, folder: str, folders: dict[str, int]) -> Iterator[bytes]:
    """The names of the images below `folder`; notes in `folders` when each folder last changed."""
    folders[folder] = (root / folder).stat().st_mtime_ns
    if folder.count("/") > _DEEPEST:
        raise BadInput(f"{root / folder}: too deep; does a link lead back to a folder above it?")
    for name, is_folder in _entries(root / folder):
        inside = f"{folder}/{name}"
        if is_folder:
            yield from _images(root, inside, folders)
        elif name.lower().endswith(EXTENSIONS):
            yield os.fsencode(inside)


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) in byte order; hidden ones, such as macOS's `._x`, are not."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries if entry.name[0] != "."]
    return sorted(found, key=lambda entry: os.fsencode(entry[0]))
