"""The reader takes every usual file of weights, on any machine, and gives plain values."""

import argparse
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from checkpoint import open as reader
from tests.checkpoint.content import same, small_model
from utils.errors import BadInput


def test_old_and_new_torch_files_and_safetensors_give_the_same(tmp_path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in small_model().state_dict().items()}
    weights |= {"b": torch.ones(3).bfloat16(), "e": torch.empty(0), "s": torch.tensor(2.0)}
    torch.save(weights, tmp_path / "new.pt")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors")
    assert same(reader.read(tmp_path / "new.pt"), weights)
    assert same(reader.read(tmp_path / "old.pth"), weights)
    assert same(dict(sorted(reader.read(tmp_path / "x.safetensors").items())), dict(
        sorted(weights.items())))  # fmt: skip


@pytest.mark.parametrize("new", [True, False])
def test_namespaces_parameters_and_classes_of_torch_come_as_plain_values(
    tmp_path: Path, new: bool
) -> None:
    model = small_model()
    arguments = argparse.Namespace(lr=0.1, device=torch.device("cuda", 1), size=torch.Size([2]))
    saved = {"model": model.state_dict(), "args": arguments, "p": model[1].weight, "t": (1, None)}
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    content = reader.read(tmp_path / "x.pt")
    assert content["args"] == {"lr": 0.1, "device": "cuda:1", "size": [2]}
    assert content["t"] == [1, None] and not content["p"].requires_grad
    assert same(content["model"], dict(model.state_dict()))
    assert content["model"]["0.weight"].stride() == model.state_dict()["0.weight"].stride()


def test_tensors_saved_on_a_gpu_load_without_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    weights = {"a": torch.ones(3), "b": torch.zeros(3)}
    torch.save(weights, path)
    data = path.read_bytes()
    # The first tensor's device; `b` takes it from the memo, as a file saved on one GPU would.
    path.write_bytes(data.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00gpu"))
    assert same(reader.read(path), weights)
    tree = reader.look(path).tree
    assert tree["a"].storage.device == "gpu"


def test_tied_and_sliced_tensors_are_read(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(3, 4)
    saved = {"a": weight, "tied": weight, "row": weight[1], "column": weight[:, 2]}
    torch.save(saved, tmp_path / "x.pt")
    content = reader.read(tmp_path / "x.pt")
    assert same(content, saved)
    assert content["a"].data_ptr() == content["tied"].data_ptr()


def test_what_is_no_file_of_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    fifo, text, empty = tmp_path / "fifo", tmp_path / "text", tmp_path / "empty"
    os.mkfifo(fifo)
    text.write_text("weights")
    empty.touch()
    torch.save([1], tmp_path / "list.pt")
    for path, reason in {
        tmp_path / "missing.pt": "no such file",
        tmp_path: "is a folder",
        fifo: "no regular file",
        text: "neither a torch.save file",
        empty: "empty, cut off",
        tmp_path / "list.pt": "holds a list",
    }.items():
        with pytest.raises(BadInput, match=reason) as caught:
            reader.read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_whole_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(small_model(), tmp_path / "x.pt")
    with pytest.raises(BadInput, match=r"torch\.nn\.modules\.container\.Sequential.*state_dict"):
        reader.read(tmp_path / "x.pt")
