"""Memory on the CPU: what a step frees is kept for the next one."""

import ctypes

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = (2**30, 2**25)  # bytes; glibc before 2.35 takes no more than the second


def keep_freed_memory(device: torch.device) -> None:
    """Let the C library keep what is freed from now on, when the steps run on the CPU.

    torch keeps the freed memory of GPUs, not that of the host: there glibc hands large blocks back
    to the system, which fills them with zeros again, page by page, at every step. Where there is no
    glibc nothing is done.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if device.type == "cpu" and adjust is not None:
        any(adjust(_MMAP_THRESHOLD, size) for size in _LARGEST)
        adjust(_TRIM_THRESHOLD, 2**31 - 1)
