"""Any file of weights is described, and two are compared, without running what is in them."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from checkpoint import inspect
from tests.checkpoint.content import flip, put, small_model


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and everything printed."""
    code = inspect.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_checkpoint_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, put(tmp_path, 7))
    assert code == 0 and "digest matches" in text and '"step": 7' in text
    assert "model: 9 tensors, 252 values, 510 B" in text
    row = next(line for line in text.splitlines() if line.startswith("  3.weight"))
    assert row.split() == ["3.weight", "float16", "[3,", "64]", "384", "B", "cpu"]


def test_a_damaged_checkpoint_is_described_and_said_to_be_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path, 7)
    flip(path)
    code, text = said(capsys, path)
    assert code == 2 and "DIGEST DOES NOT MATCH" in text and "3.weight" in text


def test_files_of_strangers_are_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {name: value.contiguous() for name, value in small_model().state_dict().items()}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors")
    torch.save({"a\x1b[31m\nb": torch.ones(1)}, tmp_path / "rude.pt")
    for name, kind in {"old.pth": "torch.save before 1.6", "x.safetensors": "safetensors"}.items():
        code, text = said(capsys, tmp_path / name)
        assert code == 0 and kind in text and "unverified" in text and "3.weight" in text
    _, text = said(capsys, tmp_path / "rude.pt")
    assert "\x1b" not in text and r"a\x1b[31m\nb" in text


def test_two_files_are_compared_tensor_by_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = put(tmp_path, 1)
    assert said(capsys, one, "--diff", one) == (
        0,
        "equal, every bit of every tensor and every value\n",
    )
    other = put(tmp_path, 2)
    assert said(capsys, one, "--diff", other)[1].splitlines() == [
        "cursor.step: 1 and 2",
        "cursor.samples: 4 and 8",
    ]
    a = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([float("nan")]), "x": torch.ones(2)}
    b = {"w": torch.tensor([1.0, 2.5]), "n": torch.tensor([float("nan")]), "y": torch.ones(2)}
    torch.save(a | {"d": torch.ones(1)}, tmp_path / "a.pt")
    torch.save(b | {"d": torch.ones(1).half()}, tmp_path / "b.pt")
    code, text = said(capsys, tmp_path / "a.pt", "--diff", tmp_path / "b.pt")
    assert code == 1 and text.splitlines() == [
        f"only in {tmp_path}/a.pt: x",
        f"only in {tmp_path}/b.pt: y",
        "w: 1 of 2 values differ, at most by 0.5",
        "d: float32 [1] and float16 [1]",
    ]


def test_weights_are_compared_as_they_are_restored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = put(tmp_path / "a", 1), put(tmp_path / "b", 1, seed=1)
    _, text = said(capsys, one, "--diff", other)
    assert "model.3.weight: 192 of 192 values differ" in text and "residual" not in text


def test_what_is_refused_ends_with_code_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, tmp_path / "none.pt")
    assert code == 2 and text == f"error: {tmp_path}/none.pt: there is no such file\n"
