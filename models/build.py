"""A network by name, with random weights on one rank and none on the others."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.cifar_resnet import cifar_resnet18
from models.library import LIBRARIES, Builder
from models.small_resnet import small_resnet
from utils.names import is_function_path, load_function, pick

MODELS: dict[str, Builder] = {
    "small_resnet": small_resnet,
    "cifar_resnet18": cifar_resnet18,
}


def find_builder(name: str) -> Builder:
    """The builder of `small_resnet`, `torchvision:resnet50`, or `path/to/file.py:function`."""
    if is_function_path(name):
        return load_function(name, "model")
    library, _, network = name.partition(":")
    if network:
        return pick(LIBRARIES, library, "model library").builder(network)
    return pick(MODELS, name, "model")


def build_model(
    builder: Builder, num_classes: int, in_channels: int, *, seed: int, initialise: bool
) -> nn.Module:
    """The network on the CPU: random by `seed`, or, without `initialise`, filled with NaN.

    The ranks that will receive their weights draw none, and hold NaN until the broadcast, so that
    a missing broadcast shows at once. Raises BadInput when the builder refuses.
    """
    if initialise:
        torch.manual_seed(seed)
        return builder(num_classes, in_channels)
    with _NoDraws():
        model = builder(num_classes, in_channels)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(float("nan") if tensor.is_floating_point() else -1)
    return model


class _NoDraws(TorchFunctionMode):
    """Skips every random fill: what a constructor computes otherwise stays as it is."""

    _fills = frozenset(
        {
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
            torch.Tensor.bernoulli_,
            torch.Tensor.exponential_,
            torch.Tensor.erfinv_,
        }
    )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return args[0] if func in self._fills else func(*args, **(kwargs or {}))
