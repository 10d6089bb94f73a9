"""A run's content copied into shared memory that has no name, and read from it by the writer.

The memory is a memfd: it is in no folder, so nothing is left of it when its processes are gone. It
is kept and used again, since fresh pages cost as much as the copy itself.
"""

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64
# Room for the description to grow (metrics, a longer configuration) without a new mapping.
_SLACK = 1 << 20


class Snapshot:
    """The kept memory; made before the writer is forked, so that both hold it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("lockstep-snapshot", os.MFD_CLOEXEC)
        self._size = 0
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._layout: list[Any] = []
        self._views: list[Tensor] = []
        self._pinned = False

    def needs(self, content: Mapping[str, Any]) -> int:
        """Bytes of memory that a save of `content` takes beyond what is held already: its copy
        here, and the half precision weights and residuals in the writer."""
        tensors = tensors_of(content)
        weights = tensors_of({name: content.get(name) for name in ("model", "ema")})
        copied = sum(tensor.nbytes + _ALIGNMENT for tensor in tensors) + _SLACK
        return max(0, copied - self._size) + sum(tensor.nbytes for tensor in weights)

    def take(self, content: Mapping[str, Any]) -> tuple[int, int]:
        """Copy `content`; (position, length) of its description. MemoryError when it has no room.

        The tensors keep their strides, which optimizers carry from step to step.
        """
        tensors: list[Tensor] = []
        tree = _pack(content, tensors)
        layout, end = _lay_out(tensors)
        description = json.dumps({"tree": tree, "tensors": layout}).encode()
        if end + len(description) > self._size:
            self._grow(end + len(description) + _SLACK)
            self._layout = []
        if layout != self._layout:
            self._layout, self._views = layout, [_view(self._bytes, *place) for place in layout]
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        if on_gpu:
            self._pin()
        for view, tensor in zip(self._views, tensors, strict=True):
            view.copy_(tensor, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        text = torch.frombuffer(bytearray(description), dtype=torch.uint8)
        self._bytes[end : end + len(text)].copy_(text)
        return end, len(text)

    def read(self, end: int, length: int) -> dict[str, Any]:
        """What `take` copied, as views of the shared memory; called by the writer."""
        size = os.fstat(self.descriptor).st_size
        whole = torch.frombuffer(mmap.mmap(self.descriptor, size), dtype=torch.uint8)
        description = json.loads(bytes(whole[end : end + length].numpy()))
        tensors = [_view(whole, *place) for place in description["tensors"]]
        content: dict[str, Any] = _unpack(description["tree"], tensors)
        return content

    def close(self) -> None:
        self._unpin()
        self._views, self._layout = [], []
        self._bytes = torch.empty(0, dtype=torch.uint8)
        os.close(self.descriptor)

    def _grow(self, size: int) -> None:
        self._unpin()
        self._views = []
        self._bytes = torch.empty(0, dtype=torch.uint8)
        try:
            # Pages are reserved here, where it can be refused; on a write it would be a signal.
            os.posix_fallocate(self.descriptor, 0, size)
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            mapped = mmap.mmap(self.descriptor, size, flags=flags)
        except OSError as error:
            raise MemoryError(f"no {size} bytes of shared memory: {error.strerror}") from error
        self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self._size = size

    def _pin(self) -> None:
        """Page-locked memory is copied to at the full speed of the bus; without it, slower."""
        if not self._pinned:
            place, size = self._bytes.data_ptr(), self._size
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            self._pinned = int(runtime.cudaHostRegister(place, size, 0)) == 0

    def _unpin(self) -> None:
        if self._pinned:
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            runtime.cudaHostUnregister(self._bytes.data_ptr())
            self._pinned = False


def free_memory() -> int:
    """Bytes that can be had without swapping, within the limit of this process's control group."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        if limit.strip() != "max":
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # Pages of files that nobody reads now are given back when memory is needed.
            free = min(free, int(limit) - int(used) + int(stat["inactive_file"]))
    except (FileNotFoundError, KeyError, ValueError):
        pass  # no control group of version 2 limits this process
    return free


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in nested dicts and lists."""
    found: list[Tensor] = []
    _pack(value, found)
    return found


def _pack(value: Any, tensors: list[Tensor]) -> Any:
    """`value` as JSON that keeps the type of keys; tensors are appended and numbered."""
    match value:
        case Tensor():
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        case dict():
            return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
        case list():
            return {"list": [_pack(item, tensors) for item in value]}
    return value


def _unpack(value: Any, tensors: list[Tensor]) -> Any:
    match value:
        case {"tensor": number}:
            return tensors[number]
        case {"dict": items}:
            return {key: _unpack(item, tensors) for key, item in items}
        case {"list": items}:
            return [_unpack(item, tensors) for item in items]
    return value


def _lay_out(tensors: list[Tensor]) -> tuple[list[Any], int]:
    """[position, dtype, shape, strides] of each tensor, and the end of the last."""
    layout: list[Any] = []
    position = 0
    for tensor in tensors:
        # The tensor's own strides where it fills its memory; those of a packed copy elsewhere.
        strides = torch.empty_like(tensor, device="meta").stride()
        name = str(tensor.dtype).removeprefix("torch.")
        layout.append([position, name, list(tensor.shape), list(strides)])
        position += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return layout, position


def _view(
    memory: Tensor, position: int, dtype: str, shape: list[int], strides: list[int]
) -> Tensor:
    """The tensor at `position` of `memory`, with a storage of its own size: a file gets no more."""
    kind: torch.dtype = getattr(torch, dtype)
    count = 1
    for size in shape:
        count *= size
    if count == 0:
        return torch.empty(shape, dtype=kind)
    buffer = memory.numpy()[position : position + count * kind.itemsize]
    return torch.frombuffer(buffer, dtype=kind).as_strided(shape, strides)
