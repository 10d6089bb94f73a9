"""What the person sees while it trains: one bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("lockstep")


class _AboveTheBar(logging.Handler):
    """Prints records without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def open_logs(log_file: Path, rank: int, *, on_console: bool) -> None:
    """Write this rank's records to `log_file`, and to the console if it is the one that speaks.

    Warnings and errors of the other ranks reach the console too, with their rank.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(log_file)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_console = _AboveTheBar()
    if on_console:
        to_console.setFormatter(logging.Formatter("%(message)s"))
    else:
        to_console.setLevel(logging.ERROR)
        to_console.setFormatter(logging.Formatter(f"[rank {rank}] %(message)s"))
    log.handlers = [to_file, to_console]
    log.setLevel(logging.INFO)
    log.propagate = False


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
                total=total_steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.1
            )

    def step(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, step: int, train: dict[str, float], images_per_second: float) -> None:
        """Show the last row's numbers; without a terminal, at most one line in `every_s` seconds."""
        if not self._shown:
            return
        numbers = (
            f"loss {train['loss']:.4f}, lr {train['lr']:.4g}, {images_per_second:,.0f} images/s"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(numbers)
        elif time.monotonic() - self._spoke_at >= self._every_s:
            self._spoke_at = time.monotonic()
            log.info("step %d/%d: %s, %s left", step, self._total, numbers, self._time_left(step))

    def _time_left(self, step: int) -> str:
        per_step = (time.monotonic() - self._started) / max(1, step - self._first_step)
        return duration(per_step * (self._total - step))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
