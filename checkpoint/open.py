"""The one reader of weights and checkpoints, ours or a stranger's: data comes out, no code runs.

Every format is mapped, not read: a tensor's bytes stay in the file until they are used. `scan.py`
interprets the pickle inside; no unpickler is ever started on a file.
"""

import io
import mmap
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
from torch import Tensor

from checkpoint import digest
from checkpoint.archive import archive_records
from checkpoint.scan import Storage, Stored, plain, refuse, scan
from utils.errors import BadInput

PARTS = [
    *("model", "residual", "optimizer", "scaler", "cursor"),
    *("labels", "preprocess", "config", "metrics", "environment"),
]
_OPTIONAL = ["ema", "ema_residual", "digest"]

# The list of contents of a file with thousands of tensors takes a few hundred KB.
_LARGEST_PICKLE = 16 << 20
_LARGEST_HEADER = 8 << 20
# What `torch.save` before 1.6 wrote first: its magic number, pickled with protocol 2.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class Contents:
    """What a file holds, before any tensor is read: `tree` with tensors as `Stored`."""

    path: Path
    size: int
    kind: str
    tree: Any
    starts: Mapping[str, int] = field(default_factory=dict)  # storage key -> position of its bytes


def read(path: Path) -> dict[str, Any]:
    """The content of a .pt, .pth or .safetensors file: dicts, lists, numbers, text, CPU tensors.

    Tensors are mapped from the file wherever they were saved from; attributes of an
    `argparse.Namespace` come as a dict. BadInput when the file is missing, damaged, no such file,
    holds anything but data, or does not match the digest that it carries.
    """
    content = read_unverified(path)
    if "digest" in content:
        try:
            digest.check(content)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
    return content


def read_unverified(path: Path) -> dict[str, Any]:
    """As `read`, whatever digest the file carries; to look at it, not to use it."""
    try:
        contents = look(path)
        if isinstance(contents.tree, _Safetensors):
            return contents.tree.tensors()
        content = plain(contents.tree, contents.size, _source(contents).tensor)
        if not isinstance(content, dict):
            raise BadInput(f"holds a {type(content).__name__}, not a dict of weights")
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error.__cause__
    return content


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, as it lies in the file; BadInput when a part is missing.

    Its digest was checked. One that carries none is as it is: the caller says so.
    """
    content = read(path)
    missing = [part for part in PARTS if part not in content]
    if missing:
        raise BadInput(f"{path}: not a checkpoint to go on from: it has no {', '.join(missing)}")
    # One flipped bit in the word "digest" would make the file an unverified one.
    unknown = [str(part) for part in content if part not in PARTS + _OPTIONAL]
    if unknown:
        raise BadInput(
            f"{path}: damaged, or of a later version: its part {unknown[0]!r} is unknown"
        )
    return content


def look(path: Path) -> Contents:
    """What `path` holds, tensors as descriptions; BadInput on anything that is not data."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise BadInput("is a folder" if stat.S_ISDIR(mode) else "is no regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(len(_LEGACY))
            if head.startswith(b"PK\x03\x04"):
                return _look_zip(path, file, size)
            if head == _LEGACY:
                return _look_legacy(path, file, size)
    except FileNotFoundError as error:
        raise BadInput("there is no such file") from error
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}") from error
    if head[8:9] == b"{":
        return _look_safetensors(path, size, head)
    raise BadInput("neither a torch.save file nor a safetensors file (empty, cut off, or another)")


def _look_zip(path: Path, file: IO[bytes], size: int) -> Contents:
    records = archive_records(file, size)
    names = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise BadInput("a zip file, but not one that torch.save wrote")
    start, length = records[names[0]]
    if length > _LARGEST_PICKLE:
        raise refuse(f"its list of contents has {length} bytes")
    file.seek(start)
    tree = scan(io.BytesIO(file.read(length)), size)
    folder = names[0].removesuffix("data.pkl")
    order = records.get(f"{folder}byteorder")
    if order is not None:
        file.seek(order[0])
        if file.read(order[1]) != b"little":
            raise refuse("it was written on a machine of another byte order")
    prefix = f"{folder}data/"
    data = {name[len(prefix) :]: at for name, at in records.items() if name.startswith(prefix)}
    for storage in _storages(tree, size).values():
        place = data.get(storage.key)
        if place is None or place[1] != storage.numel * storage.dtype.itemsize:
            raise BadInput(f"damaged, the bytes of storage {storage.key[:20]!r} are not there")
    return Contents(path, size, "torch.save", tree, {key: at[0] for key, at in data.items()})


def _look_legacy(path: Path, file: IO[bytes], size: int) -> Contents:
    """A file that `torch.save` before 1.6 wrote: five pickles, then the bytes of each storage."""
    file.seek(0)
    pickles = io.BytesIO(file.read(_LARGEST_PICKLE))
    scan(pickles, size)  # the magic number
    if scan(pickles, size) != 1001 or not isinstance(scan(pickles, size), dict):
        raise BadInput("damaged, an old torch.save file with another beginning")
    tree = scan(pickles, size)
    keys = scan(pickles, size)
    storages = _storages(tree, size)
    if not isinstance(keys, list) or set(storages) != set(keys) or len(storages) != len(keys):
        raise BadInput("damaged, its storages are not the ones that its tensors need")
    starts: dict[str, int] = {}
    place = pickles.tell()
    for key in keys:
        file.seek(place)
        count = struct.pack("<q", storages[key].numel)
        if file.read(8) != count:
            raise BadInput(f"damaged, the bytes of storage {key[:20]!r} are not there")
        starts[key] = place + 8
        place += 8 + storages[key].numel * storages[key].dtype.itemsize
    if place != size:
        raise BadInput("damaged, it ends before or after its last tensor")
    return Contents(path, size, "torch.save before 1.6", tree, starts)


def _storages(tree: Any, size: int) -> dict[str, Storage]:
    """Key -> storage of each tensor in `tree`; BadInput when it outgrows a file of `size` bytes."""
    found: dict[str, Storage] = {}

    def note(stored: Stored) -> None:
        if found.setdefault(stored.storage.key, stored.storage) != stored.storage:
            raise refuse("one storage is used as two")

    plain(tree, size, note)
    return found


def _source(contents: Contents) -> "_Source":
    try:
        return _Source(contents)
    except (OSError, ValueError) as error:  # ValueError: it became shorter since it was looked at
        raise BadInput(f"cannot be read: {error}") from error


class _Source:
    """The mapped bytes of a file; hands out its tensors."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        with contents.path.open("rb") as file:
            # Private pages: whoever writes into a tensor of a file writes into memory.
            self._bytes = mmap.mmap(file.fileno(), contents.size, access=mmap.ACCESS_COPY)
        self._storages: dict[str, torch.UntypedStorage] = {}

    def tensor(self, stored: Stored) -> Tensor:
        storage = stored.storage
        if storage.key not in self._storages:
            start = self._contents.starts[storage.key]
            flat = torch.empty(0, dtype=storage.dtype)
            if storage.numel:
                flat = torch.frombuffer(
                    self._bytes, dtype=storage.dtype, count=storage.numel, offset=start
                )
            # Old files do not align their tensors, and some kernels rely on it.
            self._storages[storage.key] = (flat.clone() if start % 16 else flat).untyped_storage()
        empty = torch.empty(0, dtype=storage.dtype)
        return empty.set_(self._storages[storage.key], stored.offset, stored.shape, stored.strides)


@dataclass(frozen=True)
class _Safetensors:
    path: Path

    def tensors(self) -> dict[str, Tensor]:
        try:
            with safetensors.safe_open(self.path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
            raise BadInput(f"damaged, no safetensors file ({error})") from error


def _look_safetensors(path: Path, size: int, head: bytes) -> Contents:
    header = struct.unpack("<Q", head[:8])[0]
    if header > min(_LARGEST_HEADER, size):
        raise refuse(f"its header claims {header} bytes")
    return Contents(path, size, "safetensors", _Safetensors(path))
