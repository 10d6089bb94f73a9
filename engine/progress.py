"""What the person sees while it trains: one bar on a terminal, plain lines elsewhere."""

import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)


class _AboveTheBar(logging.Handler):
    """Prints records without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except BrokenPipeError:  # nobody reads any more (`| head`): the log files go on
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


class _Spoken(logging.Formatter):
    """Marks errors and warnings as every command and launch.sh do: a traceback is marked enough."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        kind = {logging.ERROR: "error: ", logging.WARNING: "warning: "}.get(record.levelno, "")
        return f"{self._who}{kind}{super().format(record)}"


def open_console(*, speaks: bool) -> None:
    """Show records: all of the rank that speaks, errors (on standard error) of the others."""
    console = _AboveTheBar()
    console.setFormatter(_Spoken("" if speaks else f"[rank {os.environ.get('RANK', '?')}] "))
    console.setLevel(logging.INFO if speaks else logging.ERROR)
    root = logging.getLogger()
    root.handlers = [console]
    root.setLevel(logging.INFO)
    logging.getLogger("torch").setLevel(logging.WARNING)


def open_log_file(folder: Path, rank: int) -> None:
    """Write this rank's records to `rank-K.log` in `folder` as well; first, where it runs."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / f"rank-{rank}.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(file)
    who = (rank, socket.gethostname(), os.getpid())
    told = log.makeRecord(log.name, logging.INFO, "", 0, "rank %d: host %s, process %d", who, None)
    file.handle(told)  # not to the console


class Progress:
    """Loss, learning rate, images/s and time left, over all ranks; silent unless `shown`."""

    def __init__(self, total_steps: int, done: int, *, shown: bool, every_s: float = 10.0) -> None:
        self._total = total_steps
        self._every_s = every_s
        self._shown = shown
        self._spoke_at = time.monotonic()
        self._first_step, self._started = done, time.monotonic()
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=done,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.1,
                mininterval=0.5,  # seconds: a drawing costs as much as several steps' other work
            )

    def step(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, row: dict[str, Any]) -> None:
        """Show a metrics row: always when it holds an evaluation, else in the bar, or without a
        terminal as a line in `every_s` seconds at most."""
        if not self._shown:
            return
        step, train = row["step"], row["train"]
        numbers = (
            f"loss {train['loss']:.4f}, lr {train['lr']:.4g}, "
            f"{row['clock']['images_per_s']:,.0f} images/s"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(numbers, refresh=False)  # shown with the next step that is
        if "eval" in row:
            log.info("epoch %d, step %d/%d: %s", row["epoch"], step, self._total, numbers)
            log.info("  held out: %s", told(row["eval"]))
        elif self._bar is None and time.monotonic() - self._spoke_at >= self._every_s:
            self._spoke_at = time.monotonic()
            log.info("step %d/%d: %s, %s left", step, self._total, numbers, self._time_left(step))

    def _time_left(self, step: int) -> str:
        per_step = (time.monotonic() - self._started) / max(1, step - self._first_step)
        return duration(per_step * (self._total - step))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def told(scores: dict[str, float | None]) -> str:
    """`accuracy 0.9861, loss 0.0512`."""
    return ", ".join(f"{k} {'not finite' if v is None else f'{v:.4f}'}" for k, v in scores.items())


def farewell(folder: Path, metric: str, best: float | None) -> str:
    """Where a finished run is, and how good it became."""
    best_of_all = "" if best is None else f"; best {metric} {best:.4f}: {folder / 'best.pt'}"
    return f"finished: all there is to see is in {folder}{best_of_all}"


def duration(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
