"""What half precision and the whole module cost on the disk, and what half costs in accuracy.

python -m bench sizes [CHECKPOINT ...]      half a minute, and an evaluation for each checkpoint
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.paired import record
from checkpoint.state import decoded
from checkpoint.store import load
from configs.load import from_plain
from data.datasets import build_dataset
from data.loader import Source, eval_batches
from data.transforms import eval_transform
from engine.evaluate import evaluate
from engine.gradient import mixed_precision
from engine.step import step_settings
from models.build import build_model, find_builder
from tasks.task import build_task


def run(argv: Sequence[str]) -> None:
    """Print both tables, and record them."""
    parser = argparse.ArgumentParser(prog="python -m bench sizes", description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    given = parser.parse_args(argv)
    sizes = {name: _sizes(model) for name, model in _networks().items()}
    for name, found in sizes.items():
        print(name, *(f"{way} {size:,} bytes" for way, size in found.items()), sep="\n  ")
    scores = {str(file.parent.name): _scores(file) for file in given.checkpoints}
    for name, score in scores.items():
        print(f"{name}: accuracy {score}")
    record("sizes", {"bytes": sizes, "accuracy": scores})


def _networks() -> dict[str, nn.Module]:
    from torchvision import models

    detector = models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    return {"resnet50": models.resnet50(weights=None), "fasterrcnn_resnet50_fpn": detector}


def _sizes(model: nn.Module) -> dict[str, int]:
    """Bytes of the file by what is saved; the model ends in half precision."""
    found = {"module, float32": _bytes(model), "state dict, float32": _bytes(model.state_dict())}
    model.half()
    return found | {"module, half": _bytes(model), "state dict, half": _bytes(model.state_dict())}


def _bytes(content: Any) -> int:
    file = io.BytesIO()
    torch.save(content, file)
    return file.tell()


def _scores(file: Path) -> dict[str, float | None]:
    """Held-out accuracy of a checkpoint's weights, restored to float32 exactly, and in half."""
    content = load(file)
    config = from_plain(content["config"], (), str(file))
    held_out = build_dataset(config.data, "val")
    task = build_task(config.task, held_out.classes)
    device = torch.device("cpu")
    source = Source(held_out, task.collate, eval_transform(held_out, device), device)
    settings = step_settings(config, [], 1, device)
    builder = find_builder(config.model.name)
    found = {}
    for way, residual in (("restored", content["residual"]), ("half", None)):
        model = build_model(
            builder, len(held_out.classes), held_out.channels, seed=0, initialise=False
        )
        model.load_state_dict(decoded(content["model"], residual))
        batches = eval_batches(source, config.train.evaluation_batch, 0, 1)
        with_precision = mixed_precision(settings)
        found[way] = evaluate(model, task, batches, with_precision).metrics["accuracy"]
    return found
