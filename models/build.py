"""A network by name, with random weights on one rank and none on the others."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.small_resnet import small_resnet
from utils.errors import BadInput
from utils.names import is_function_path, load_function, near, pick

Builder = Callable[[int, int], nn.Module]  # (num_classes, in_channels) -> network

MODELS: dict[str, Builder] = {
    "small_resnet": small_resnet,
}


def find_builder(name: str) -> Builder:
    """The builder of `small_resnet`, `torchvision:resnet50`, or `path/to/file.py:function`."""
    if is_function_path(name):
        return load_function(name, "model")
    library, _, network = name.partition(":")
    if network:
        return pick(LIBRARIES, library, "model library")(network)
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


def _torchvision(network: str) -> Builder:
    """The builder of one of torchvision's classification networks, its stem fitted to the data."""
    from torchvision import models  # imported here: 1.3 s that small runs do without

    names = models.list_models(module=models)
    if network not in names:
        raise BadInput(f"torchvision has no model '{network}' {near(network, names)}".rstrip())

    def build(num_classes: int, in_channels: int) -> nn.Module:
        model: nn.Module = models.get_model(network, weights=None, num_classes=num_classes)
        fit_stem(model, in_channels)
        return model

    return build


LIBRARIES: dict[str, Callable[[str], Builder]] = {"torchvision": _torchvision}


def fit_stem(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by a random one when the data has other channels."""
    convolutions = (pair for pair in model.named_modules() if isinstance(pair[1], nn.Conv2d))
    name, module = next(convolutions, ("", None))
    if not isinstance(module, nn.Conv2d) or module.in_channels == in_channels:
        return
    if module.groups != 1:
        raise BadInput(f"the first convolution, {name}, has groups: its channels cannot change")
    stem = nn.Conv2d(
        in_channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, stem)
