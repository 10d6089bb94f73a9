"""A few steps of one rank of a large job, alone: what they take here, and nothing that is kept.

What depends on the other ranks is not told: a loss or a score would be of this rank's twins.
"""

import logging
import os
import platform
import signal
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from checkpoint.folder import claim
from configs.schema import Config
from ddp import watch
from ddp.board import START_TIMEOUT_S
from ddp.process import Place
from ddp.rank0 import is_rank0
from ddp.stop import SIGNALS, Stopped
from ddp.wrap import Wrapped
from engine.gradient import MicroBatch, StepSettings
from engine.pace import peak_bytes
from engine.plan import Plan

log = logging.getLogger(__name__)

STEPS = 6  # the last one ends in a save; the first and the last are not timed
_NEVER = 10**9

M = TypeVar("M", bound=MicroBatch)


class _Done(Exception):
    """All steps are taken."""


class _Interrupted(BaseException):
    """A signal came; no Exception, which the `except` of what it interrupts may catch."""


class Rehearsal:
    """Looks at the steps of a run from where it asks for its batches, and ends them."""

    def __init__(self, config: Config, place: Place) -> None:
        self._config, self._place = config, place
        self._entered = time.perf_counter()
        self._begun: list[float] = []  # when each step asked for its first batch
        self._waited: list[float] = []  # seconds that each step waited for batches
        self._about: list[tuple[str, str]] = []
        self._interrupted = False

    def observed(
        self,
        batches: Generator[M],
        ddp_model: Wrapped,
        optimizer: Optimizer,
        settings: StepSettings,
        samples: int,
    ) -> Generator[M]:
        """`batches` of a run on `samples` samples, the last thing before its steps."""
        with closing(batches):
            for _ in range(STEPS):
                if self._interrupted:  # where the error was lost, as in a hook of os.fork
                    raise _Interrupted
                self._begun.append(self._now())
                self._waited.append(0.0)
                for _ in settings.micro_batches:
                    start = time.perf_counter()
                    item = next(batches, None)
                    self._waited[-1] += time.perf_counter() - start
                    if item is None:
                        return
                    yield item
            self._begun.append(self._now())
            self._about = [
                *self._shape(settings, samples),
                *self._sizes(ddp_model, optimizer, settings),
            ]
            raise _Done

    def interrupt(self, _number: int, _frame: FrameType | None) -> NoReturn:
        """End the rehearsal for a signal."""
        self._interrupted = True
        raise _Interrupted

    def _now(self) -> float:
        if self._place.device.type == "cuda":
            torch.cuda.synchronize(self._place.device)
        return time.perf_counter()

    def _shape(self, settings: StepSettings, samples: int) -> Iterator[tuple[str, str]]:
        """What becomes of the samples."""
        batch, epochs = settings.global_batch, self._config.train.epochs
        steps, dropped = divmod(samples, batch)
        forwards = len(settings.micro_batches)
        added = f"gradients of {forwards} added up" if forwards > 1 else "no accumulation"
        yield "step", settings.described()
        yield "this rank", f"{_of(sum(settings.micro_batches), 'sample')} a step, {added}"
        yield (
            "epoch",
            (
                f"{_of(steps, 'step')}, {steps * batch:,} of {samples:,} samples; "
                f"{dropped:,} dropped ({dropped / samples:.2%})"
            ),
        )
        yield (
            "run",
            (
                f"{_of(epochs, 'epoch')}, {_of(epochs * steps, 'step')}, "
                f"{epochs * steps * batch:,} samples"
            ),
        )

    def _sizes(
        self, ddp_model: Wrapped, optimizer: Optimizer, settings: StepSettings
    ) -> Iterator[tuple[str, str]]:
        """What a rank holds and sends."""
        parameters = list(ddp_model.module.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        yield "parameters", f"{_count(parameters):,}, of which {_count(trained):,} are trained"
        ranks = _of(settings.world_size, "rank")
        if self._config.ddp.exact:
            rounds = settings.world_size.bit_length() - 1
            how = f"exchanged {rounds} times to add up {ranks}"
        elif settings.world_size == 1:
            how = "for this rank alone"
        else:
            how = f"averaged over {ranks} by DDP"
        yield "gradients", f"{_size(sum(p.nbytes for p in trained))} a step, {how}"
        values = [value for entry in optimizer.state.values() for value in entry.values()]
        state = sum(value.nbytes for value in values if isinstance(value, Tensor))
        skipped = settings.scaler.is_enabled() and not values
        none_yet = "; each step overflowed in fp16, and made none yet" if skipped else ""
        yield "optimizer", f"{_size(state)} of state{none_yet}"

    def text(self, checkpoint_bytes: int | None) -> str:
        """What was found, for a person; `checkpoint_bytes` of rank 0's file, where there is one."""
        place = self._place
        head = (
            f"rehearsed: rank {place.rank:,} of {place.world_size:,}, {STEPS} steps alone on "
            f"{_machine(place.device)}; nothing was kept"
        )
        lines = [*self._about, *self._costs(checkpoint_bytes)]
        return "\n".join([head, *(f"  {name:11} {value}" for name, value in lines)])

    def _costs(self, checkpoint_bytes: int | None) -> Iterator[tuple[str, str]]:
        """What was measured."""
        if checkpoint_bytes is not None:
            yield "checkpoint", f"{_size(checkpoint_bytes)}, written by this rank"
        elif is_rank0():
            yield "checkpoint", "not measured: it could not be written here"
        else:
            yield "checkpoint", "rank 0 writes it: --rank 0 shows its size"
        on_gpu, workers = self._place.device.type == "cuda", self._config.data.workers
        yield (
            "memory",
            (
                f"{_size(peak_bytes(self._place.device))} at most, "
                f"{'by tensors on the GPU' if on_gpu else 'resident'}"
                + (
                    f"; its {_of(workers, 'data worker')} not counted"
                    if workers and not on_gpu
                    else ""
                )
            ),
        )
        start_s = self._begun[0] - self._entered
        yield (
            "start",
            f"{start_s:,.2f} s until the first step: data, network, warm-up",
        )
        steps = [after - before for before, after in pairwise(self._begun)]
        taken = [step - waited for step, waited in zip(steps, self._waited, strict=True)]
        yield "computing", f"{_ms(median(taken[1:-1]))} a step on this machine, without the wire"
        yield (
            "loader",
            (
                f"{_ms(median(self._waited[1:-1]))} a step of waiting for it, "
                f"{_ms(self._waited[0])} for the first"
            ),
        )


@contextmanager
def rehearsed(plan: Plan, place: Place) -> Iterator[tuple[Plan, Rehearsal]]:
    """The plan of a run that ends after a few steps and leaves nothing; what it took is told."""
    rehearsal = Rehearsal(plan.config, place)
    watch.limit(START_TIMEOUT_S, START_TIMEOUT_S)  # of a machine that may be slow
    size = None
    with _folder(compiles=plan.config.train.compile) as parent, _stopping(rehearsal), _silent():
        folder = claim(parent, "rehearsal", "none") if is_rank0() else None
        path = parent if folder is None else folder.path
        short = plan._replace(config=_shortened(plan.config), path=path, folder=folder)
        try:
            yield short, rehearsal
        except _Done:
            pass
        finally:
            if folder is not None:
                folder.release()  # when the save under way is done
        if folder is not None:
            size = max(
                (file.stat().st_size for file in folder.path.glob("step-*.pt")), default=None
            )
    log.info(rehearsal.text(size))


@contextmanager
def _folder(*, compiles: bool) -> Iterator[Path]:
    """A folder for all that is written meanwhile, torch's compiler's cache included."""
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        moved = {"TORCHINDUCTOR_CACHE_DIR": folder}
        if compiles:  # its headers are kept beside that cache
            moved["TMPDIR"] = folder
        before = {name: os.environ.get(name) for name in moved}
        os.environ |= moved
        tempfile.tempdir = None  # found again when it is asked for
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            tempfile.tempdir = None


def _shortened(config: Config) -> Config:
    """`config` of a run that is not evaluated, nor told about, saved once, and never complete."""
    epochs = max(config.train.epochs, STEPS + 1)
    changes: dict[str, dict[str, Any]] = {
        "train": {"epochs": epochs, "eval_every": _NEVER},
        "save": {"every_steps": STEPS, "every_minutes": None},
        "log": {"every_steps": _NEVER, "tensorboard": False, "report": False},
    }
    sections = {name: getattr(config, name).model_copy(update=c) for name, c in changes.items()}
    return config.model_copy(update=sections)


@contextmanager
def _stopping(rehearsal: Rehearsal) -> Iterator[None]:
    """A signal ends the rehearsal, which then removes what it wrote."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, rehearsal.interrupt)
    try:
        yield
    except (_Interrupted, Stopped) as stopped:
        raise Stopped("the rehearsal was stopped by a signal; nothing was kept") from stopped


@contextmanager
def _silent() -> Iterator[None]:
    """What a run tells in passing is not true of one that has no other ranks."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(before)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_of(torch.get_num_threads(), 'thread')} of this machine ({platform.machine()})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.4g} ms"


def _count(tensors: list[torch.nn.Parameter]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _of(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
