"""How long before the first step: imports, and from torchrun to the end of the first step.

python -m bench startup [--rounds 7]        3 minutes on two cores
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.paired import record, spread

ROOT = Path(__file__).parents[1]
Cost = tuple[float, float]  # (CPU s, wall s)

# What a run of ours needs of torch, then what it imports besides; CPU s of each.
IMPORTS = """
import time
start = time.process_time()
import torch, torch.distributed.elastic.multiprocessing.errors, torch.nn.parallel, torch.utils.data
needed = time.process_time()
import train
print(needed - start, time.process_time() - needed)
"""


def run(argv: list[str]) -> None:
    """Measure, record and print."""
    options = argparse.ArgumentParser("bench startup")
    options.add_argument("--rounds", type=int, default=7)
    rounds = options.parse_args(argv).rounds
    imports = [_imports() for _ in range(rounds)]
    ours: list[Cost] = []
    bare: list[Cost] = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            turns = [(ours, _ours), (bare, _bare)]
            (Path(name) / str(number)).mkdir()
            for times, first_step in turns if number % 2 else reversed(turns):
                times.append(first_step(Path(name) / str(number)))
    result = {
        "import_torch_cpu_s": spread([torch for torch, _ in imports]),
        "import_ours_cpu_s": spread([harness for _, harness in imports]),
    }
    for place, kind in enumerate(("cpu", "wall")):
        pairs = [(one[place], other[place]) for one, other in zip(ours, bare, strict=True)]
        result |= {
            f"first_step_bare_{kind}_s": spread([other for _, other in pairs]),
            f"first_step_ours_{kind}_s": spread([one for one, _ in pairs]),
            f"first_step_added_{kind}_s": spread([one - other for one, other in pairs]),
        }
    record("startup", dict(result))
    for key, value in result.items():
        print(f"  {key:24} {value.told(' s')}")


def _imports() -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    torch, ours = done.stdout.split()
    return float(torch), float(ours)


def _torchrun(*arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    return [*launcher, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", *arguments]


def _bare(folder: Path) -> Cost:
    """Until a bare script has ended its first step."""
    told = folder / "bare"
    return _first_step(told, "bench/first_step.py", str(told))


def _ours(folder: Path) -> Cost:
    """Until the first row of metrics, which is written after the first step."""
    rows = folder / "ours" / "quickstart" / "metrics.jsonl"
    options = ("model.weights=null", "log.every_steps=1", f"run.dir={folder / 'ours'}")
    return _first_step(rows, "train.py", *options)


def _first_step(told: Path, *arguments: str) -> Cost:
    """(CPU s of all processes, wall s) from the launch until something stands in `told`."""
    start = time.perf_counter()
    process = subprocess.Popen(
        _torchrun(*arguments),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not (told.is_file() and told.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{arguments[0]} ended before its first step")
            time.sleep(0.01)
        return sum(_cpu(number) for number in _tree(process.pid)), time.perf_counter() - start
    finally:
        for number in _tree(process.pid):
            os.kill(number, signal.SIGKILL)
        process.wait()


def _tree(root: int) -> list[int]:
    """`root` and the processes that came of it."""
    found = [root]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
