"""A deployable file from a checkpoint: the weights, with what it takes to use them.

examples:
  python -m models.export runs/quickstart/best.pt digits.pt
  python -m models.export runs/quickstart/best.pt digits.safetensors --format safetensors
  python -m models.export runs/quickstart/best.pt digits.onnx --format onnx
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoint.open import read
from checkpoint.state import decoded
from models.build import build_model, find_builder
from models.graphs import write_exported, write_onnx
from utils.command import Parser, refusing
from utils.errors import BadInput

Format = Callable[[Path, dict[str, Tensor], Mapping[str, Any]], None]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def weights(content: Mapping[str, Any], which: str, dtype: str, file: Path) -> dict[str, Tensor]:
    """The state dict `which` (model or ema) of a checkpoint's content as `dtype`.

    float16 is the file's own (entries that it would break stay float32); float32 is restored bit
    for bit; bfloat16 is rounded from float32. Integers stay as they are.
    """
    state = content.get(which)
    if not isinstance(state, Mapping):
        raise BadInput(f"{file} holds no '{which}'")
    if dtype == "float16":
        return dict(state)
    residual = content.get("residual" if which == "model" else "ema_residual")
    exact = decoded(state, residual)
    return {k: v.to(DTYPES[dtype]) if v.is_floating_point() else v for k, v in exact.items()}


def write_state_dict(out: Path, state: dict[str, Tensor], content: Mapping[str, Any]) -> None:
    """`torch.load(out, weights_only=True)["model"]`, beside `labels` and `preprocess`."""
    about = {key: content[key] for key in ("labels", "preprocess") if key in content}
    torch.save({"model": {k: v.clone() for k, v in state.items()}, **about}, out)


def write_safetensors(out: Path, state: dict[str, Tensor], content: Mapping[str, Any]) -> None:
    """Tensors by name; `labels` and `preprocess` as JSON in the file's metadata."""
    from safetensors.torch import save_file

    about = {key: json.dumps(content[key]) for key in ("labels", "preprocess") if key in content}
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, out, about)


def write_module(out: Path, state: dict[str, Tensor], content: Mapping[str, Any]) -> None:
    """The whole module, pickled: opening it takes its class and `weights_only=False`.

    That means trusting the file with the machine; Lockstep's own commands refuse such files.
    """
    model = rebuilt(content)
    model.load_state_dict(state)
    halves = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    torch.save(model.to(min(halves, key=lambda dtype: dtype.itemsize)), out)


def rebuilt(content: Mapping[str, Any]) -> nn.Module:
    """The checkpoint's network, on the CPU, without its weights."""
    builder = find_builder(content["config"]["model"]["name"])
    channels = content["preprocess"]["channels"]
    return build_model(builder, len(content["labels"]), channels, seed=0, initialise=False)


def graph_format(write: Callable[[Path, nn.Module, Mapping[str, Any]], None]) -> Format:
    """The format of a graph, which `write` makes of the network with its weights in float32."""

    def write_graph(out: Path, state: dict[str, Tensor], content: Mapping[str, Any]) -> None:
        model = rebuilt(content)
        model.load_state_dict(state)
        write(out, model.eval(), content)

    return write_graph


GRAPHS: dict[str, Format] = {
    "onnx": graph_format(write_onnx),
    "torch_export": graph_format(write_exported),
}
FORMATS: dict[str, Format] = {
    "state_dict": write_state_dict,
    "safetensors": write_safetensors,
    "module": write_module,
    **GRAPHS,
}


@refusing
def main(argv: Sequence[str]) -> int:
    """Write the file that the command line asks for; the exit code."""
    parser = Parser(
        prog="python -m models.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a checkpoint of a run")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument(
        "--which", choices=("model", "ema"), default="model", help="the averaged model is ema"
    )
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="state_dict",
        help="onnx and torch_export are graphs, compared with the network before they are written",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="of the weights (float16; of a graph float32, only)"
    )
    given = parser.read(argv)
    is_graph = given.format in GRAPHS
    dtype = given.dtype or ("float32" if is_graph else "float16")
    if is_graph and dtype != "float32":
        raise BadInput(f"--format {given.format} is float32 only; leave --dtype out")
    content = read(given.file)
    state = weights(content, given.which, dtype, given.file)
    FORMATS[given.format](given.out, state, content)
    count = sum(tensor.numel() for tensor in state.values())
    size = given.out.stat().st_size
    print(f"{given.out}: {len(state)} tensors, {count:,} numbers, {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
