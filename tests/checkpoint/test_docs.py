"""docs/checkpoint.md says how to read a checkpoint without this project; that works as written."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint import state
from checkpoint.writer import write
from tests.checkpoint.content import captured, same, trained

DOCS = Path(__file__).parents[2] / "docs" / "checkpoint.md"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The live weights of a checkpoint that holds every kind of tensor, saved as `last.pt`."""
    model, optimizer = trained()
    content = captured(model, optimizer, 3)
    content["model"]["tiny"] = torch.rand(50) * 1e-6
    content["model"]["listed"] = torch.cat([torch.randn(500), torch.full((9,), 1e-6)])
    content["model"]["large"] = torch.tensor([1e9, 1.0])
    write(tmp_path, content, best=False, keep=2)
    monkeypatch.chdir(tmp_path)
    weights: dict[str, Any] = content["model"]
    return weights


def test_the_lines_of_plain_pytorch_restore_every_bit(checkpoint: dict[str, Any]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["labels"] == ["a", "b", "c"] and names["weights"]["0.weight"].dtype == torch.half
    assert len(names["checkpoint"]["residual"]["index"]) > 0
    assert same(names["exact"], checkpoint)


def test_the_digest_is_what_the_text_says(checkpoint: dict[str, Any]) -> None:
    content = torch.load("last.pt", weights_only=True)
    digest = hashlib.sha256()

    def add(path: list[Any], value: Any) -> None:
        if isinstance(value, torch.Tensor):
            line = [path, "tensor", str(value.dtype)[6:], list(value.shape)]
        elif isinstance(value, dict | list):
            line = [path, type(value).__name__, len(value)]
        else:
            line = [path, "value", value]
        digest.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        children = enumerate(value) if isinstance(value, list) else getattr(value, "items", list)()
        for key, child in children:
            add([*path, key], child)

    add([], {key: value for key, value in content.items() if key != "digest"})
    assert digest.hexdigest() == content["digest"]
    assert len(state.restored(content)) == len(content) - 2
