"""A small but complete run to save: every key of the format, every odd kind of tensor."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoint import state
from checkpoint.digest import raw_bytes
from checkpoint.open import look
from checkpoint.writer import write


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    model(torch.rand(2, 1, 6, 6))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained(seed: int = 0, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its AdamW after a few steps."""
    model = small_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(4, 1, 6, 6)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def captured(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    return state.capture(
        model=model,
        optimizer=optimizer,
        scaler=None,
        ema=None,
        cursor={"epoch": 0, "step": step, "samples": step * 4, "best": None, "meter": {}},
        labels=["a", "b", "c"],
        preprocess={"image_size": 6, "channels": 1, "mean": [0.5], "std": [0.25]},
        config={"seed": 0, "run": {"name": "x", "dir": "runs"}},
        metrics={"accuracy": 0.5},
        environment={"torch": torch.__version__, "world_size": 1, "threads": 1},
    )


def content(step: int, seed: int = 0) -> dict[str, Any]:
    return captured(*trained(seed), step)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and bit patterns: NaN equals NaN, and -0.0 differs from 0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return raw_bytes(a) == raw_bytes(b)


def same(a: Any, b: Any) -> bool:
    """Equal nested content, tensors bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and same_bits(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def temporaries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


def put(folder: Path, step: int, *, best: bool = False, keep: int = 2, seed: int = 0) -> Path:
    """Write the checkpoint of `step` into `folder`, in this process."""
    folder.mkdir(exist_ok=True)
    return write(folder, content(step, seed), best=best, keep=keep).path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


def flip(path: Path) -> None:
    """One bit of a tensor, in place: every link of the file is damaged."""
    data = bytearray(path.read_bytes())
    data[look(path).starts["0"]] ^= 1
    path.write_bytes(data)
