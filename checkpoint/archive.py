"""Where the records of a `torch.save` zip lie, without trusting what the zip says of itself."""

import struct
import zipfile
from typing import IO

from checkpoint.scan import BYTES_PER_OBJECT, refuse
from utils.errors import BadInput

# Between two records may lie the sizes of the first, written again behind it.
_LARGEST_GAP = 24


def archive_records(file: IO[bytes], size: int) -> dict[str, tuple[int, int]]:
    """Name -> (position, length) of each record; BadInput unless all are stored as they are,
    once each, and side by side."""
    # The table is read whole: it must not be larger than that of a file of this size can be.
    listed = _table_bytes(file, size)
    if listed > (1 << 20) + size // 8:
        raise refuse(f"its table of records has {listed} bytes")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            table = archive.start_dir
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError) as error:
        raise BadInput(f"damaged, its table of records cannot be read ({error})") from error
    if len(infos) > 10_000 + size // BYTES_PER_OBJECT:
        raise refuse(f"it has {len(infos)} records")
    if any("/code/" in info.filename or "/constants.pkl" in info.filename for info in infos):
        raise refuse("a TorchScript archive holds a program, not only weights")
    records: dict[str, tuple[int, int]] = {}
    free = 0
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise refuse(f"its record {info.filename[:40]!r} is compressed or encrypted")
        file.seek(info.header_offset)
        header = file.read(30)
        gap = info.header_offset - free
        if not 0 <= gap <= _LARGEST_GAP * bool(records) or header[:4] != b"PK\x03\x04":
            raise BadInput(f"damaged, its record {info.filename[:40]!r} is not where it should be")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        free = start + info.file_size
        if info.file_size != info.compress_size or free > table or info.filename in records:
            raise BadInput(f"damaged, its record {info.filename[:40]!r} has no place in the file")
        records[info.filename] = (start, info.file_size)
    if table - free > _LARGEST_GAP:
        raise BadInput("damaged, there is something between its last record and its table")
    return records


def _table_bytes(file: IO[bytes], size: int) -> int:
    """The length of the zip's table, from the last bytes of the file (98 where it is large)."""
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b"\0")
    large, locator, end = tail[:56], tail[56:76], tail[76:]
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise BadInput("damaged or cut off, a zip file without its end")
    if locator[:4] != b"PK\x06\x07":
        return int(struct.unpack("<I", end[12:16])[0])
    if large[:4] != b"PK\x06\x06" or struct.unpack("<Q", locator[8:16])[0] != size - 98:
        raise BadInput("damaged, a zip file with an odd end")
    return int(struct.unpack("<Q", large[40:48])[0])
