"""Memory on the CPU: what a step frees is kept for the next one, in large pages.

torch keeps the freed memory of GPUs, not that of the host: there glibc hands large blocks back to
the system, which fills them with zeros again, page by page, at every step.
"""

import ctypes
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = (2**30, 2**25)  # bytes; glibc before 2.35 takes no more than the second
_HUGEPAGE, _COLLAPSE = 14, 25  # of mman.h; the second since Linux 6.1
_LARGE_PAGE = 2**21  # bytes
_ALLOWED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@contextmanager
def kept_memory(device: torch.device) -> Generator[None]:
    """What is freed inside and from then on is kept by this process, if its steps run on the CPU.

    At the end the heap, which has then taken in what a step needs, is put on large pages, where the
    system allows them. Where there is no glibc nothing is done.
    """
    library = ctypes.CDLL(None)
    keeps = device.type == "cpu" and hasattr(library, "mallopt")
    if keeps:
        any(library.mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    yield
    if keeps:
        with suppress(OSError):  # no such pages, or no /proc
            _onto_large_pages(library)


def _onto_large_pages(library: ctypes.CDLL) -> None:
    """The heap on pages of 2 MiB, at once where the system can, by and by where it cannot."""
    if "[never]" in _ALLOWED.read_text():
        return
    for line in Path("/proc/self/maps").read_text().splitlines():
        if not line.endswith("[heap]"):
            continue
        low, high = (int(edge, 16) for edge in line.split()[0].split("-"))
        low = -(-low // _LARGE_PAGE) * _LARGE_PAGE
        whole = (high - low) // _LARGE_PAGE * _LARGE_PAGE
        for advice in (_HUGEPAGE, _COLLAPSE):
            library.madvise(ctypes.c_void_p(low), ctypes.c_size_t(whole), advice)
