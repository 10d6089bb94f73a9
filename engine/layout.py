"""Which ranks run where, told at the same cost by any number of them."""

import socket
from typing import Any

import torch

from ddp.collectives import max_over_ranks, sum_over_ranks, world_size
from ddp.process import own_host
from ddp.rank0 import is_first_of_host

LISTED = 64  # hosts that are named; of all there is a count
_ROOM = 160  # bytes of a description: a host's name has at most 64


def processes(rank: int, device: torch.device) -> dict[str, Any]:
    """`count` of the ranks, number of `hosts`, and of the first hosts, `listed`, each its name,
    first and last rank and device; a collective."""
    number, here = own_host(rank)
    table = torch.zeros(LISTED, _ROOM, dtype=torch.uint8)  # a row a host, written by its first rank
    if is_first_of_host() and number < LISTED:
        name = device.type
        if device.type == "cuda":
            name = f"cuda ({torch.cuda.get_device_name(device)})"
        text = "\0".join([str(rank), str(rank + here - 1), socket.gethostname(), name]).encode()
        described = torch.frombuffer(bytearray(text[:_ROOM]), dtype=torch.uint8)
        table[number, : len(described)] = described
    rows = [bytes(row.tolist()).rstrip(b"\0") for row in max_over_ranks(table)]
    parts = [row.decode(errors="replace").split("\0") for row in rows if row]
    hosts = sum_over_ranks(torch.tensor([int(is_first_of_host())]))
    return {
        "count": world_size(),
        "hosts": int(hosts),
        "listed": [
            {"host": host, "first": int(first), "last": int(last), "device": place}
            for first, last, host, place, *_ in parts
        ],
    }
