"""What a run leaves in its folder for people, beside the checkpoints (see docs/run_folder.md).

Rank 0 writes it, in forms that anything reads: JSON lines, and numpy's .npz.
"""

import io
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from checkpoint.folder import Metrics
from configs.schema import Log
from utils.durable import write_atomic
from utils.errors import BadInput

LOG = logging.getLogger(__name__)

Row = dict[str, Any]
Pictures = Callable[[list[int]], tuple[list[int], NDArray[np.uint8]]]
_SAMPLES = 24


class Board(Protocol):
    """Another place that rows, evaluations and samples go to."""

    def row(self, row: Row) -> None: ...

    def evaluation(self, step: int, arrays: Mapping[str, NDArray[Any]]) -> None: ...

    def samples(self, arrays: Mapping[str, NDArray[Any]]) -> None: ...

    def close(self) -> None: ...


def require_board(log: Log) -> None:
    """BadInput when TensorBoard is asked for but not installed."""
    if log.tensorboard and find_spec("tensorboard") is None:
        raise BadInput("log.tensorboard needs a package: pip install tensorboard")


def open_board(log: Log, run: Path, step: int) -> Board | None:
    """TensorBoard where the configuration asks for it; imported only then."""
    if not log.tensorboard:
        return None
    from engine.board import TensorBoard

    return TensorBoard(run, step)


class Recorder:
    """Writes a run's rows, starts, evaluations and samples; opens nothing before `begin`."""

    def __init__(self, folder: Path, log: Log, classes: Sequence[str], pictures: Pictures) -> None:
        """`pictures`: (samples found, images uint8 (N, H, W, C)) of held-out samples."""
        self._folder, self._log = folder, log
        self._classes, self._pictures = list(classes), pictures
        self._metrics: Metrics | None = None
        self._board: Board | None = None

    def begin(self, about: Row, batch: Mapping[str, Tensor], seen: NDArray[np.uint8]) -> None:
        """Note that the run starts, or goes on, as `about` says, with its first `batch`, whose
        images are `seen` (N, H, W, C)."""
        self._metrics = Metrics(self._folder / "metrics.jsonl")
        self._board = open_board(self._log, self._folder, about["step"])
        start = {
            "time": time.time(),
            "restart": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            **about,
        }
        with (self._folder / "starts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(start) + "\n")
        arrays = {"pictures": seen[:_SAMPLES], "labels": np.array(self._captions(batch))}
        self._write("samples.npz", arrays)
        if self._board is not None:
            self._board.samples(arrays)

    def record(self, row: Row, sums: Mapping[str, Tensor] | None) -> None:
        """Add a row of metrics, and the `sums` of the evaluation in it."""
        if sums is not None:
            self.evaluation(row["step"], sums)
        self.row(row)

    def row(self, row: Row) -> None:
        """Add a row of metrics."""
        assert self._metrics is not None
        self._metrics.append(row)
        if self._board is not None:
            self._board.row(row)

    def evaluation(self, step: int, sums: Mapping[str, Tensor]) -> None:
        """Replace the sums of the last evaluation, with the pictures of its worst samples."""
        arrays = {name: value.numpy() for name, value in sums.items()}
        worst = [
            sample
            for name, rows in arrays.items()
            if name.startswith("worst_")
            for sample in rows[:, 1].tolist()
            if sample >= 0
        ]
        found, images = self._pictures(sorted(set(worst)))
        arrays |= {
            "step": np.array(step),
            "classes": np.array(self._classes),
            "picture_samples": np.array(found, dtype=np.int64),
            "pictures": images,
        }
        self._write("evaluation.npz", arrays)
        if self._board is not None:
            self._board.evaluation(step, arrays)

    def close(self) -> None:
        """Leave everything complete."""
        if self._board is not None:
            self._board.close()
        if self._metrics is not None:
            self._metrics.close()

    def _captions(self, batch: Mapping[str, Tensor]) -> list[str]:
        """The class of each image, or both classes and their shares where two were mixed."""
        if batch["label"].dim() != 1:  # a task with other labels than classes
            return [""] * min(_SAMPLES, len(batch["label"]))
        names = [self._classes[label] for label in batch["label"][:_SAMPLES].tolist()]
        if "partner_label" not in batch:
            return names
        others = [self._classes[label] for label in batch["partner_label"][:_SAMPLES].tolist()]
        shares = batch["own_share"][:_SAMPLES].tolist()
        return [
            f"{share:.0%} {name}, {1 - share:.0%} {other}" if name != other else name
            for name, other, share in zip(names, others, shares, strict=True)
        ]

    def _write(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a file of arrays; a full disk costs the pictures, and not the run."""
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        try:
            write_atomic(self._folder / name, file.getvalue())
        except OSError as error:
            LOG.warning("%s not written: %s", self._folder / name, error)
