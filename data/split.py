"""Which samples are held out, where a dataset does not say."""

import numpy as np
from numpy.typing import NDArray


def held_out(
    labels: NDArray[np.integer], drawn: NDArray[np.uint64], part: float
) -> NDArray[np.bool_]:
    """(N,) bool: of each class the `part` with the smallest `drawn`, never none or all of it."""
    order = np.lexsort((drawn, labels))  # by class, and in it by the draw
    counts = np.bincount(labels)
    place = np.empty(len(labels), dtype=np.int64)  # of each sample inside its class
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    quota = np.clip(np.round(part * counts), 1, np.maximum(counts - 1, 0)).astype(np.int64)
    result: NDArray[np.bool_] = place < quota[labels]
    return result
