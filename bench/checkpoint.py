"""How long a save holds up the loop, and what it costs the steps that run beside it.

python -m bench checkpoint [--rounds 4] [--layers 24] [--folder .]     3 minutes and 10 GB of disk

A chain of Linear(2048, 2048), 100.7 M parameters, with AdamW: 1.2 GB of weights and optimizer.
Ways to save, in turn: a blocking torch.save with fsync; a copy into kept buffers, which is the
floor; ours; torch.distributed.checkpoint.async_save. Then the steps beside our writer, with a core
to spare and with all on one core.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import async_save

from bench.paired import record, spread
from checkpoint.snapshot import tensors_of
from checkpoint.state import capture
from checkpoint.store import Store
from utils.durable import sync_folder

_LIMIT_S = 120.0


def run(argv: list[str]) -> None:
    """Measure, print, and record one result."""
    options = argparse.ArgumentParser("bench checkpoint")
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--layers", type=int, default=24)
    options.add_argument("--width", type=int, default=2048)
    options.add_argument("--folder", type=Path, default=Path(), help="the disk to write to")
    options.add_argument("--one-core", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-checkpoint-") as name:
        if given.one_core:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            print(json.dumps(Bench(Path(name), given.layers, given.width).beside(given.rounds)))
            return
        bench = Bench(Path(name), given.layers, given.width)
        result = bench.stalls(given.rounds) | {"spare_core": bench.beside(given.rounds)}
        bench.close()
    result["no_spare_core"] = _on_one_core(given)
    _tell(result)
    told = {
        key: spread(value) if isinstance(value, list) else value for key, value in result.items()
    }
    record("checkpoint", told)


class Bench:
    """One training process with a store."""

    def __init__(self, folder: Path, layers: int, width: int) -> None:
        self.folder = folder
        (folder / "ours").mkdir()
        self.store = Store(folder / "ours", keep=2)  # forks its writer before there is a model
        torch.set_num_threads(1)
        self.model = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.batch = torch.randn(16, width)
        self.saves = 0
        self.cpu_s = 0.0  # of the last way's wait, in the loop's thread
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.batch).square().mean().backward()
        self.optimizer.step()

    def content(self) -> dict[str, Any]:
        self.saves += 1
        cursor: dict[str, Any] = {
            "epoch": 0,
            "step": self.saves,
            "samples": 0,
            "best": None,
            "meter": {},
        }
        return capture(
            model=self.model,
            optimizer=self.optimizer,
            scaler=None,
            ema=None,
            cursor=cursor,
            labels=None,
            preprocess=None,
            config={},
            metrics={},
            environment={},
        )

    def stalls(self, rounds: int) -> dict[str, Any]:
        """Seconds that each way of saving holds up the loop, the ways in turn."""
        kept = [torch.empty_like(tensor) for tensor in tensors_of(self.content())]
        ways: dict[str, Callable[[], float]] = {
            "blocking": self._blocking,
            "copy": lambda: self._copy(kept),
            "ours": self._ours,
            "dcp_async": self._dcp,
        }
        size = sum(tensor.nbytes for tensor in kept)
        result: dict[str, Any] = {"bytes": size, "first_s": {n: way() for n, way in ways.items()}}
        for name in ways:
            result |= {f"{name}_s": [], f"{name}_cpu_s": []}
        written = []
        for _ in range(rounds):
            for name, way in ways.items():
                result[f"{name}_s"].append(way())
                result[f"{name}_cpu_s"].append(self.cpu_s)
                self.step()
            done = self.store.done()
            written.append(done.write_s if done and done.write_s else 0.0)
        return result | {"ours_write_s": written}

    def _blocking(self) -> float:
        """torch.save of the same float32 content, synced and renamed."""
        content = self.content()
        start = self._start()
        path = self.folder / "plain.pt"
        with path.with_suffix(".tmp").open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".tmp").rename(path)
        sync_folder(self.folder)
        return self._since(start)

    def _copy(self, kept: list[torch.Tensor]) -> float:
        tensors = tensors_of(self.content())
        start = self._start()
        for buffer, tensor in zip(kept, tensors, strict=True):
            buffer.copy_(tensor)
        return self._since(start)

    def _ours(self) -> float:
        content = self.content()
        start = self._start()
        self.store.save(content, self.saves)
        stall = self._since(start)
        self.store.wait()
        return stall

    def _dcp(self) -> float:
        content = self.content()
        state = {name: content[name] for name in ("model", "optimizer")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there is one process, as meant
            start = self._start()
            answer: Any = async_save(state, checkpoint_id=self.folder / "dcp", no_dist=True)
            stall = self._since(start)
            answer.result()
        shutil.rmtree(self.folder / "dcp")
        return stall

    def _start(self) -> tuple[float, float]:
        return time.perf_counter(), time.thread_time()

    def _since(self, start: tuple[float, float]) -> float:
        """Seconds of the wall clock; those of the processor are left in `cpu_s`."""
        self.cpu_s = time.thread_time() - start[1]
        return time.perf_counter() - start[0]

    def beside(self, rounds: int) -> dict[str, Any]:
        """Median seconds of a step alone and of one beside the writer, and seconds a save took."""
        alone: list[float] = []
        busy: list[float] = []
        writes: list[float] = []
        self.store.save(self.content(), self.saves)
        self.store.wait()
        for _ in range(rounds):
            alone += [self._timed_step() for _ in range(5)]
            saved = self.store.save(self.content(), self.saves)
            end = time.monotonic() + _LIMIT_S
            while (done := self.store.done()) is None or done.path != saved.path:
                busy.append(self._timed_step())
                assert time.monotonic() < end, "the writer does not come to an end"
            writes.append(done.write_s or 0.0)
        return {
            "step_alone_s": median(alone),
            "step_beside_s": median(busy),
            "ratio": median(busy) / median(alone),
            "write_s": median(writes),
        }

    def _timed_step(self) -> float:
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def close(self) -> None:
        self.store.close()


def _on_one_core(given: argparse.Namespace) -> dict[str, Any]:
    """`beside` in a process that has one core for itself and its writer."""
    command = [sys.executable, "-m", "bench", "checkpoint", "--one-core"]
    command += ["--rounds", str(given.rounds), "--layers", str(given.layers)]
    command += ["--width", str(given.width), "--folder", str(given.folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _tell(result: dict[str, Any]) -> None:
    print(f"checkpoint of {result['bytes'] / 1e9:.2f} GB; seconds that the loop waits")
    for name in ("blocking", "copy", "ours", "dcp_async"):
        first = result["first_s"][name]
        print(f"  {name:9} {spread(result[f'{name}_s']).told(' s')}, the first {first:.3f} s")
    print(f"  ours, until durable and read back: {spread(result['ours_write_s']).told(' s')}")
    for kind, words in (("s", "wall"), ("cpu_s", "processor")):
        ratio = median(result[f"ours_{kind}"]) / median(result[f"copy_{kind}"])
        print(f"  ours / copy, {words} time: {ratio:.2f}")
    for key, words in (("spare_core", "a core to spare"), ("no_spare_core", "one core for all")):
        part = result[key]
        print(
            f"  a step beside the writer, {words}: {part['ratio']:.2f} x "
            f"({part['step_beside_s']:.3f} s, alone {part['step_alone_s']:.3f} s; "
            f"the save takes {part['write_s']:.1f} s)"
        )
