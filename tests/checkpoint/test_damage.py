"""Whatever happens to the bytes of a checkpoint, it is refused or its content is what it was."""

from pathlib import Path
from typing import Any

import pytest

from checkpoint import open as reader
from checkpoint import state, store
from checkpoint.writer import write
from tests.checkpoint.content import same
from utils.errors import BadInput

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkpoint of few bytes, so that each can be tried."""
    import torch

    content: dict[str, Any] = {"model": {"w": torch.tensor([0.5, 1.5, 0.1])}}
    content |= {part: None for part in reader.PARTS if part not in ("model", "residual")}
    content["cursor"] = {"step": 1}
    write(tmp_path, content, best=False, keep=2)
    return tmp_path / "step-00000001.pt"


def survives(path: Path, data: bytes, before: dict[str, Any]) -> bool:
    """Whether `data` loads; if so its content must be `before`."""
    path.write_bytes(data)
    try:
        content = store.load(path)
    except BadInput:
        return False
    assert same(content, before)
    return True


def test_a_bit_flipped_at_any_byte_is_refused_or_harmless(small: Path, tmp_path: Path) -> None:
    data, before = small.read_bytes(), state._copied(store.load(small))
    target = tmp_path / "x.pt"
    harmless = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        harmless += survives(target, bytes(flipped), before)
    assert harmless < len(data)


def test_a_file_cut_off_at_any_length_is_refused(small: Path, tmp_path: Path) -> None:
    data, before = small.read_bytes(), state._copied(store.load(small))
    for length in range(len(data)):
        assert not survives(tmp_path / "x.pt", data[:length], before)
    assert not survives(tmp_path / "x.pt", data + b"\0", before)
    assert survives(tmp_path / "x.pt", data, before)


def test_zeroed_and_swapped_sectors_are_refused_or_harmless(small: Path, tmp_path: Path) -> None:
    data, before = small.read_bytes(), state._copied(store.load(small))
    for start in range(0, len(data) - 1024, 512):
        zeroed = data[:start] + bytes(512) + data[start + 512 :]
        survives(tmp_path / "x.pt", zeroed, before)
        one, two = data[start : start + 512], data[start + 512 : start + 1024]
        survives(tmp_path / "x.pt", data[:start] + two + one + data[start + 1024 :], before)
