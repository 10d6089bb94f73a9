"""A checkpoint's network as a graph that runs without its Python code: ONNX, torch.export.

What comes out is compared with the network itself before the file is left in place.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.durable import write_atomic
from utils.errors import BadInput

TOLERANCE = 1e-4  # of a logit
_BATCHES = (1, 3)  # images: the graphs take any number


def write_onnx(out: Path, model: nn.Module, content: Mapping[str, Any]) -> None:
    """An ONNX file: `image` float32 (B, C, S, S), normalised, to `logits` (B, K)."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise BadInput(f"--format onnx needs packages: pip install {' '.join(missing)}")
    import onnxruntime

    image = images(content, _BATCHES[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program = torch.onnx.export(
            model,
            (image,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(about(content))
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])

    require_equal(model, run, content)
    write_atomic(out, file)


def write_exported(out: Path, model: nn.Module, content: Mapping[str, Any]) -> None:
    """A `torch.export` program: `torch.export.load(out).module()(image)` gives the logits."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (images(content, _BATCHES[-1]),), dynamic_shapes=({0: batch},)
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=about(content))
    file.seek(0)
    require_equal(model, torch.export.load(file).module(), content)
    write_atomic(out, file.getvalue())


def about(content: Mapping[str, Any]) -> dict[str, str]:
    """`labels` and `preprocess` as JSON: an ONNX file's metadata, a program's extra files."""
    return {key: json.dumps(content[key]) for key in ("labels", "preprocess")}


def images(content: Mapping[str, Any], count: int) -> Tensor:
    """Random images (count, C, S, S) as the checkpoint's network takes them, of a fixed seed."""
    preprocess = content["preprocess"]
    size = preprocess["image_size"]
    shape = (count, preprocess["channels"], size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def require_equal(
    model: nn.Module, graph: Callable[[Tensor], Tensor], content: Mapping[str, Any]
) -> None:
    """BadInput when the graph's logits differ from the network's by more than the tolerance."""
    for count in _BATCHES:
        image = images(content, count)
        with torch.inference_mode():
            difference = float((model(image) - graph(image)).abs().max())
        if not difference <= TOLERANCE:
            raise BadInput(
                f"the graph's logits differ from the network's by {difference:.2g} on {count} "
                f"images, more than {TOLERANCE:g}: nothing was written"
            )
