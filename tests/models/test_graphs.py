"""Exported graphs give the logits of the network on real digits, on any number of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoint.open import read
from configs.schema import Data
from data.datasets import build_dataset
from data.transforms import eval_transform
from models import export, graphs
from utils.errors import BadInput


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with what an export needs of a checkpoint: a small network of random weights."""
    path = tmp_path_factory.mktemp("graphs") / "last.pt"
    content = {
        "config": {"model": {"name": "small_resnet"}},
        "labels": [str(number) for number in range(10)],
        "preprocess": {"image_size": 28, "channels": 1, "mean": [0.3], "std": [0.4]},
    }
    torch.manual_seed(5)
    model = export.rebuilt(content)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            spread = 0.5 if "running_var" not in name else 0.1
            tensor.copy_(torch.rand(tensor.shape) * spread + (1 if "running_var" in name else -0.2))
        else:
            tensor.zero_()
    torch.save({"model": model.state_dict(), **content}, path)
    return path


def eager(checkpoint: Path) -> nn.Module:
    content = read(checkpoint)
    model = export.rebuilt(content)
    model.load_state_dict(content["model"])
    return model.eval()


def digits(count: int) -> Tensor:
    """Real held-out digits as the network takes them."""
    data = build_dataset(Data(name="digits", image_size=28), "val")
    samples = torch.arange(count).numpy()
    batch: Any = data.__getitems__(samples)  # type: ignore[attr-defined]
    image: Tensor = eval_transform(data, torch.device("cpu"))(batch, samples, 0)["image"]
    return image


def test_onnx_gives_the_networks_logits(checkpoint: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "digits.onnx"
    assert export.main([str(checkpoint), str(out), "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == [str(number) for number in range(10)]
    model = eager(checkpoint)
    for count in (1, 7, 100):
        image = digits(count)
        logits = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        with torch.inference_mode():
            assert (logits - model(image)).abs().max() <= 1e-4


def test_an_exported_program_gives_the_networks_logits(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.pt2"
    assert export.main([str(checkpoint), str(out), "--format", "torch_export"]) == 0
    files = {"preprocess": ""}
    program = torch.export.load(out, extra_files=files).module()
    assert json.loads(files["preprocess"])["image_size"] == 28
    model = eager(checkpoint)
    for count in (1, 7, 100):
        image = digits(count)
        with torch.inference_mode():
            assert (program(image) - model(image)).abs().max() <= 1e-4


def test_a_graph_that_differs_is_refused() -> None:
    content = {"preprocess": {"image_size": 8, "channels": 1}}
    model = nn.Flatten()
    graphs.require_equal(model, lambda image: image.flatten(1) + 1e-5, content)
    for graph in (
        lambda image: image.flatten(1) + 1e-3,
        lambda image: image.flatten(1) * torch.nan,
    ):
        with pytest.raises(BadInput, match="nothing was written"):
            graphs.require_equal(model, graph, content)


def test_a_graph_in_half_precision_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "digits.onnx"
    command = [str(checkpoint), str(out), "--format", "onnx", "--dtype", "float16"]
    assert export.main(command) == 2
    assert "float32 only" in capsys.readouterr().err
    assert not out.exists()
