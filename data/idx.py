"""Reader of IDX files, the format of MNIST and its successors: a magic number, sizes, bytes."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.errors import BadInput

_UINT8 = 8


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of uint8, gzipped or not; BadInput when it is damaged."""
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8:
        raise BadInput(f"{path} is not an IDX file of bytes (it starts with {content[:4].hex()})")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise BadInput(f"{path} is damaged: it ends inside its header; fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise BadInput(
            f"{path} is damaged: {' x '.join(map(str, shape))} need {expected} bytes, "
            f"it has {len(content)}; fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytearray:
    """All bytes of a file, unpacked if it is gzipped; writable, so that a tensor may share them."""
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return bytearray(raw)
    try:
        return bytearray(gzip.decompress(raw))
    except (EOFError, OSError, zlib.error) as reason:
        raise BadInput(f"{path} is damaged ({reason}); fetch it again") from reason
