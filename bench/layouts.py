"""Convolutions channels last beside N, C, H, W: what `models/memory_format.py` goes by.

python -m bench layouts [--precision fp32|bf16] [--cycles 7]     1 minute on one core

Forward and backward of one layer on 32 images, on one thread, as in a step.
"""

import argparse

import torch
from torch import nn

from bench.paired import Block, ratios, record, take_turns
from engine.heap import keep_freed_memory

_IMAGES = 32
# Channels in and out, pixels along a side of the kernel and of the image: of ResNets, mostly.
_LAYERS = [
    (64, 64, 3, 28), (128, 128, 3, 14), (256, 256, 3, 14), (256, 256, 3, 7), (1024, 256, 1, 14),
    (2048, 512, 1, 7), (512, 512, 3, 14), (512, 512, 3, 7), (512, 512, 3, 4), (512, 512, 3, 2),
]  # fmt: skip
_FORMATS = {"plain": torch.contiguous_format, "channels last": torch.channels_last}


def run(argv: list[str]) -> None:
    """Measure, record and print a line for each layer."""
    options = argparse.ArgumentParser("bench layouts")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options.add_argument("--cycles", type=int, default=7)
    given = options.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory(torch.device("cpu"))
    for channels, width, kernel, pixels in _LAYERS:
        layer = f"{channels} -> {width}, {kernel} x {kernel}, {pixels} x {pixels} pixels"
        sides = {
            name: _passes(channels, width, kernel, pixels, memory_format, given.precision)
            for name, memory_format in _FORMATS.items()
        }
        times = take_turns(sides, given.cycles)
        ratio = ratios(times, "channels last", "plain")["cpu"]
        record("layouts", {"layer": layer, "precision": given.precision, "ratio_cpu": ratio})
        print(
            f"layouts, {layer}, {given.precision}: channels last takes {ratio.told()} x", flush=True
        )


def _passes(
    channels: int,
    width: int,
    kernel: int,
    pixels: int,
    memory_format: torch.memory_format,
    precision: str,
) -> Block:
    """A block of one forward and backward pass of a layer."""
    layer = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    layer.to(memory_format=memory_format)
    images = torch.randn(_IMAGES, channels, pixels, pixels).to(memory_format=memory_format)
    images.requires_grad_()

    def block() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            result = layer(images)
        result.backward(torch.ones_like(result))
        images.grad = layer.weight.grad = None

    return block
