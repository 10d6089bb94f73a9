"""Which process runs where."""

import os
import socket
from typing import Any

import torch

from ddp.collectives import gather_rows
from ddp.rank0 import is_rank0

_ROOM = 160  # bytes of a description: a host's name has at most 64


def processes(rank: int, device: torch.device) -> list[dict[str, Any]]:
    """Rank, host, process id and device of every rank, on rank 0; a collective. Empty elsewhere."""
    name = f"{device}"
    if device.type == "cuda":
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    text = "\0".join([str(rank), socket.gethostname(), str(os.getpid()), name])
    padded = text.encode()[:_ROOM].ljust(_ROOM, b"\0")
    rows = gather_rows(torch.frombuffer(bytearray(padded), dtype=torch.uint8))
    if not is_rank0():  # not a million descriptions on each of a thousand ranks
        return []
    parts = [
        row.tobytes().rstrip(b"\0").decode(errors="replace").split("\0") for row in rows.numpy()
    ]
    return [
        {"rank": int(number), "host": host, "process": int(process), "device": place}
        for number, host, process, place, *_ in parts
    ]
