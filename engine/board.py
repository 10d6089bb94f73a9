"""TensorBoard: the same numbers as metrics.jsonl, which stays the source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

_CELL = 8  # pixels of a confusion matrix's cell


class TensorBoard:
    """Events in the folder `tensorboard/` of a run: scalars, confusion matrix, samples."""

    def __init__(self, run: Path, step: int) -> None:
        """Events after `step`, of a run that got further than what is gone on from, are dropped."""
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def row(self, row: dict[str, Any]) -> None:
        """The numbers of a metrics row, as `train/loss`, `eval/accuracy`, `clock/images_per_s`."""
        for part in ("train", "eval", "clock"):
            for name, value in row.get(part, {}).items():
                if isinstance(value, int | float) and name != "time":
                    self._writer.add_scalar(f"{part}/{name}", value, row["step"])

    def evaluation(self, step: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The confusion matrix as an image, dark where a truth (row) is predicted (column)."""
        if "confusion" in arrays:
            counts = arrays["confusion"]
            share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
            cell = max(1, min(_CELL, 512 // len(counts)))
            image = np.kron(1 - share, np.ones((cell, cell)))[None]
            self._writer.add_image("eval/confusion", image, step)
        self._writer.flush()

    def samples(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Training samples as the network saw them."""
        images = arrays["pictures"]
        if images.shape[3] in (1, 3):
            self._writer.add_images("train/samples", images, 0, dataformats="NHWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
