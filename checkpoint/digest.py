"""One sha256 over everything a checkpoint holds: `torch.load` never checks what it reads.

The hash takes the content depth first, in the order of the file. Every value is one line of JSON,
`[path, kind, ...]`, where `path` is the list of keys and positions that lead to it:

    [["cursor"], "dict", 5]                                then its entries, in order
    [["labels"], "list", 10]                               then its items
    [["cursor", "step"], "value", 120]
    [["model", "fc.bias"], "tensor", "float16", [10]]      then the raw bytes, row-major

Lines end with a newline and have no spaces; text is escaped to ASCII.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from utils.errors import BadInput

Path = tuple[str | int, ...]


def walk(content: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each value of nested dicts and lists with its path, depth first; containers come first."""
    yield path, content
    if isinstance(content, dict):
        for key, value in content.items():
            yield from walk(value, (*path, key))
    elif isinstance(content, list):
        for position, value in enumerate(content):
            yield from walk(value, (*path, position))


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor in row-major order; no copy when it is contiguous."""
    whole = tensor.detach().contiguous()
    # `view(-1)` would keep the odd stride that a single element may have.
    flat = whole.as_strided((whole.numel(),), (1,)).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # numpy arrays are buffers


def digest(content: dict[str, Any]) -> str:
    """The sha256, in hex, of all of `content` but its `digest`; TypeError on a value not plain."""
    state = hashlib.sha256()
    for path, value in walk({key: content[key] for key in content if key != "digest"}):
        line: list[Any]
        match value:
            case Tensor():
                line = [path, "tensor", str(value.dtype).removeprefix("torch."), list(value.shape)]
            case dict() | list():
                line = [path, type(value).__name__, len(value)]
            case None | bool() | int() | float() | str():
                line = [path, "value", value]
            case _:
                raise TypeError(f"a checkpoint cannot hold {type(value).__name__} ({path})")
        state.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        if isinstance(value, Tensor):
            state.update(raw_bytes(value))
    return state.hexdigest()


def check(content: dict[str, Any]) -> None:
    """Return when the content matches its own `digest`; BadInput otherwise."""
    stored, found = content["digest"], digest(content)
    if stored != found:
        raise BadInput(f"damaged: its content hashes to {found[:12]}, its digest is {stored[:12]}")
