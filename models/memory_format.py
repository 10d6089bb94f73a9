"""How a network's images lie in memory: channels last, except where that is slower."""

import torch
from torch import Tensor, nn

_WIDE = 2**20  # weights of a convolution: 512 channels to 512, 3 x 3, are 2.4 million


def lay_out(model: nn.Module, device: torch.device, precision: str) -> None:
    """Have `model` compute on images that lie as N, H, W, C; in place, values unchanged.

    On a CPU in fp32 wide convolutions keep N, C, H, W: oneDNN 3.12 takes up to 1.9 times as long
    for them channels last, the more the fewer pixels there are (docs/performance.md). In bf16 no
    such difference shows.
    """
    model.to(memory_format=torch.channels_last)
    if device.type != "cpu" or precision != "fp32":
        return
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and _is_wide(layer):
            layer.to(memory_format=torch.contiguous_format)
            # Torch goes by either of the two: it is not enough that the weight lies so.
            layer.register_forward_pre_hook(_contiguous)


def _is_wide(layer: nn.Conv2d) -> bool:
    return layer.weight.numel() >= _WIDE and layer.kernel_size != (1, 1)


def _contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)
