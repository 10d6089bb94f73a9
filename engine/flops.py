"""The arithmetic of a model, counted, and that of a GPU, as its maker states it."""

import copy
import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.gradient import Trains

log = logging.getLogger(__name__)

# Dense teraflops: (fp16 and bf16, TF32, fp32 without tensor cores), from the makers' data sheets.
PEAKS = {
    "B200": (2250.0, 1100.0, 75.0),
    "H200": (989.4, 494.7, 66.9),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.0, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "A10G": (70.0, 35.0, 31.5),
    "A10": (125.0, 62.5, 31.2),
    "V100": (125.0, 15.7, 15.7),
    "T4": (65.0, 8.1, 8.1),
}


class Flops(NamedTuple):
    """Floating-point operations: of training on one image, and of a device in a second."""

    of_an_image: float
    of_the_device: float


def utilisation_base(
    model: nn.Module, task: Trains, batch: dict[str, Tensor], device: torch.device, precision: str
) -> Flops | None:
    """What model FLOPs utilisation is measured against; None on a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    peak = device_flops(torch.cuda.get_device_name(device), precision)
    if peak is None:
        return None
    try:
        return Flops(image_flops(model, task, batch), peak)
    except (RuntimeError, TypeError, ValueError) as error:  # a network that looks at its data
        log.info("model FLOPs utilisation is not measured: %s", error)
        return None


def device_flops(name: str, precision: str) -> float | None:
    """The operations a second that the GPU called `name` can do at best; None if not known."""
    known = next((key for key in PEAKS if key in name), None)
    if known is None:
        return None
    half, tf32, fp32 = PEAKS[known]
    if precision != "fp32":
        return half * 1e12
    return (tf32 if torch.backends.cudnn.allow_tf32 else fp32) * 1e12


def image_flops(model: nn.Module, task: Trains, batch: dict[str, Tensor]) -> float:
    """The operations of one forward and backward pass for one image of `batch`, counted by
    torch.utils.flop_counter (matrix products and convolutions; a multiply-add is two).

    Nothing is computed, copied or changed: the count is of the shapes alone.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton: only where it is used

    tensors = [*model.parameters(), *model.buffers()]
    shapes = {
        id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=tensor.requires_grad)
        if isinstance(tensor, nn.Parameter)
        else tensor.to("meta")
        for tensor in tensors
    }
    ghost = copy.deepcopy(model, shapes)
    ghost.eval()  # SyncBatchNorm, when it trains, wants a GPU and the other ranks
    with FlopCounterMode(display=False) as counter:
        loss = task.loss(ghost, {name: value.to("meta") for name, value in batch.items()})
        loss.backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / len(batch["sample"])
