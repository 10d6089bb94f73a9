"""What a run's bits depend on besides its configuration."""

import hashlib
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from configs.command import parse
from configs.load import load, to_plain
from configs.schema import Config, Train

log = logging.getLogger(__name__)

PARTS = ("checkpoint", "configs", "data", "ddp", "engine", "models", "tasks", "utils")


def environment(world_size: int, device: torch.device) -> dict[str, Any]:
    """Versions, commit, world size, threads and device, as plain values for the checkpoint."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "device": f"{device.type} ({name})",
    }


def started_with(argv: Sequence[str]) -> dict[str, Any]:
    """What every rank must have been started with: arguments, configuration file, code, torch."""
    command, configuration = parse(argv), {}
    if command.config is not None:
        configuration = to_plain(load(command.config, command.overrides))
    return {
        "arguments": list(argv),
        "configuration": configuration,
        "code": _code(),
        "torch": torch.__version__,
    }


def _code() -> str:
    """A digest of the program's own files."""
    root, content = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(
        [root / "train.py", *(f for name in PARTS for f in (root / name).glob("*.py"))]
    ):
        content.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return content.hexdigest()[:12]


def _commit() -> str:
    """The commit of this code, with a `+` when the working tree differs; empty outside git."""
    here = Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


BITS_DEPEND_ON = ("torch", "world_size", "threads", "device")


def warn_of_differences(
    saved: Mapping[str, Any] | None, now: Mapping[str, Any], train: Train
) -> None:
    """Say why this run may not end in the bits that the checkpoint's would have, a line each."""
    if saved is None:
        return
    other = [key for key in BITS_DEPEND_ON if saved.get(key) != now[key]]
    if other:
        changed = "; ".join(f"{key} {saved.get(key)} -> {now[key]}" for key in other)
        log.warning("equal bits are not promised: %s", changed)
    if now["device"].startswith("cuda") and not train.deterministic:
        log.warning("equal bits are not promised on a GPU without train.deterministic=true")


def make_deterministic(config: Config) -> None:
    """Ask for what the configuration needs for equal bits; call before the GPU is used.

    Exact mode fixes the number of threads, to OMP_NUM_THREADS or else one, which is what torchrun
    gives its ranks: sums are divided among threads. On a GPU it needs deterministic kernels too.
    """
    if config.ddp.exact:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
    on_gpu = torch.cuda.is_available()
    if config.train.deterministic or (config.ddp.exact and on_gpu):
        # cuBLAS reads this at its first use; without it torch refuses to multiply on a GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # What torch.compile chooses by timing kernels would differ from one process to the next.
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif on_gpu:
        torch.backends.cudnn.benchmark = True
