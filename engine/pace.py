"""How fast a run goes and what holds it up, over all ranks; each number is defined in
docs/metrics.md."""

import resource
import time
from collections.abc import Generator
from typing import Any, TypeVar

import torch

from ddp.collectives import max_over_ranks, world_size
from engine.flops import Flops

T = TypeVar("T")

_PARTS = 10_000  # the resolution of a share


class Pace:
    """Counts the waiting for data between one metrics row and the next."""

    def __init__(self, device: torch.device, step: int, flops: Flops | None = None) -> None:
        """`step`: where the run stands; `flops`: of one image, and of the device at its best."""
        self._device, self._step, self._flops = device, step, flops
        self._waited_s = 0.0

    def timed(self, batches: Generator[T]) -> Generator[T]:
        """`batches`, the wait for each of which is counted."""
        try:
            while True:
                start = time.perf_counter()
                item = next(batches, None)
                self._waited_s += time.perf_counter() - start
                if item is None:
                    return
                yield item
        finally:
            batches.close()

    def over_ranks(self, row: dict[str, Any]) -> dict[str, float]:
        """What joins the row's `clock`: of all ranks, the one that waits most and the one that
        holds most memory; a collective. Starts anew."""
        busy_s = (row["step"] - self._step) * row["clock"]["step_s"]
        waited = min(1.0, self._waited_s / max(1e-9, busy_s))
        here = torch.tensor([round(waited * _PARTS), peak_bytes(self._device)], dtype=torch.int64)
        waited_parts, peak = max_over_ranks(here).tolist()
        self._waited_s, self._step = 0.0, row["step"]
        found = {
            "data_wait": waited_parts / _PARTS,
            "peak_memory_mb": round(peak / 1e6, 1),
            "time": round(time.time(), 3),
        }
        if self._flops is not None:
            spent = row["clock"]["images_per_s"] * self._flops.of_an_image
            found["mfu"] = round(spent / (world_size() * self._flops.of_the_device), 4)
        return found


def peak_bytes(device: torch.device) -> int:
    """The most memory held at once: of the GPU by torch's tensors, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
