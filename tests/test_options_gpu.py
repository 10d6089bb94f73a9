"""The options that need a GPU, killed in mid-epoch and resumed there: the same bits.

./launch.sh test tests/test_options_gpu.py        (two GPUs where there are two, else one)

Processes of their own rather than forks: CUDA does not survive a fork.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.runs import assert_same_bits, outcome
from tests.test_options import SHORT

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = "tests/option_networks.py"

CASES = {
    "deterministic kernels": (),
    "fp16 with steps skipped": (f"model.name={NETWORKS}:loud", "train.precision=fp16"),
    "fp16, channels last, averaged weights": (
        "train.precision=fp16",
        "train.channels_last=true",
        "train.ema=500",
    ),
    "SyncBatchNorm": ("ddp.sync_batchnorm=true",),
    "compiled, bf16": (
        f"model.name={NETWORKS}:tiny",
        "train.compile=true",
        "train.precision=bf16",
    ),
}


def launched(*arguments: str) -> subprocess.Popen[bytes]:
    gpus = min(2, max(1, torch.cuda.device_count()))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
    command = [sys.executable, *launcher, "train.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_an_option_killed_and_resumed_on_gpus_ends_in_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    common = (*SHORT, *CASES[name], "train.deterministic=true", f"run.dir={tmp_path}")
    assert launched(*common, "run.name=unbroken").wait(300) == 0
    broken = launched(*common, "run.name=broken")
    rows = tmp_path / "broken" / "metrics.jsonl"
    limit = time.monotonic() + 300
    while not (rows.is_file() and rows.read_bytes().count(b"\n") >= 4):
        assert broken.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    _kill_all(broken)
    resume = ("--resume", "auto", "--config", "configs/quickstart.yaml")
    assert launched(*resume, *common, "run.name=broken").wait(300) == 0
    assert_same_bits(outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken"))


def _kill_all(launcher: subprocess.Popen[bytes]) -> None:
    """kill -9 of the launcher and of the ranks, each in a session of its own."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for pid in (launcher.pid, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    launcher.wait()
