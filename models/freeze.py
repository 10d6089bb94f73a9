"""Parts of a network that do not train, chosen by name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import BadInput
from utils.names import near


def freeze(model: nn.Module, patterns: Sequence[str]) -> str:
    """Freeze the parameters whose name matches one of `patterns`; returns what was frozen.

    A pattern is a whole name with `*`, `?` and `[...]` as in file names: `layer1.*`, `*.bias`. A
    BatchNorm whose own parameters are all frozen (one without any: whose statistics match) also
    goes into evaluation mode, and so keeps its statistics. BadInput names a pattern that matches
    nothing, and refuses to freeze everything.
    """
    parameters = dict(model.named_parameters())
    names = [*parameters, *(name for name, _ in model.named_buffers())]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = near(pattern, names) or f"names look like {', '.join(list(parameters)[:3])}"
            raise BadInput(f"model.freeze: '{pattern}' matches no parameter; {hint}")
    frozen = [name for name in parameters if _matches(name, patterns)]
    if len(frozen) == len(parameters):
        raise BadInput("model.freeze: every parameter is frozen, nothing would train")
    for name in frozen:
        parameters[name].requires_grad_(False)
    norms = [module for name, module in model.named_modules() if _still(name, module, patterns)]
    for norm in norms:
        norm.eval()
    count = sum(parameters[name].numel() for name in frozen)
    total = sum(parameter.numel() for parameter in parameters.values())
    return (
        f"frozen: {len(frozen)} of {len(parameters)} tensors, {count:,} of {total:,} parameters, "
        f"{len(norms)} BatchNorms in evaluation mode"
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _still(name: str, module: nn.Module, patterns: Sequence[str]) -> bool:
    """Whether `module` is a BatchNorm that keeps its statistics."""
    if not isinstance(module, _BatchNorm):
        return False
    own = list(module.parameters(recurse=False))
    if own:
        return not any(parameter.requires_grad for parameter in own)
    return _matches(f"{name}.running_mean" if name else "running_mean", patterns)
