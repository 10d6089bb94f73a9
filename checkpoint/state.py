"""A run as one plain dict, and back."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from checkpoint import half
from utils.errors import BadInput


def plain(value: Any, where: str) -> Any:
    """`value` as dicts, lists, tensors, strings, numbers and None; tuples become lists.

    Tensors are detached, not copied. BadInput names the place of anything else.
    """
    match value:
        case Tensor():
            return value.detach()
        case None | bool():
            return value
        case int() | float() | str():
            # A class of its own (torch's version, numpy's float64) would be pickled by name.
            return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
        case Mapping():
            return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [plain(item, f"{where}.{number}") for number, item in enumerate(value)]
    raise BadInput(
        f"{where} holds {type(value).__name__}; a checkpoint holds only tensors, numbers, text, "
        "lists and dicts"
    )


def capture(
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: Mapping[str, Any] | None,
    ema: nn.Module | None,
    cursor: Mapping[str, Any],
    labels: list[str] | None,
    preprocess: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """What it takes to go on, as plain values that still share the live tensors' memory.

    `model` is the bare module (`ddp_model.module`), `scaler` the gradient scaler's state dict.
    Nothing is changed or copied: the store does that, and must be done before the next step.
    """
    content: dict[str, Any] = {"model": plain(model.state_dict(), "model")}
    if ema is not None:
        content["ema"] = plain(ema.state_dict(), "ema")
    content["optimizer"] = plain(optimizer.state_dict(), "optimizer")
    content["scaler"] = plain(scaler, "scaler")
    parts = {
        "cursor": cursor,
        "labels": labels,
        "preprocess": preprocess,
        "config": config,
        "metrics": metrics,
        "environment": environment,
    }
    return content | {name: plain(part, name) for name, part in parts.items()}


def encoded(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The content as it lies in the file, weights in half precision, and the names kept float32."""
    filed: dict[str, Any] = {}
    kept: list[str] = []
    for name, part in content.items():
        if name not in ("model", "ema"):
            filed[name] = part
            continue
        tensors = {key: value for key, value in part.items() if isinstance(value, Tensor)}
        weights = half.encode(tensors)
        filed[name] = {key: weights.half.get(key, value) for key, value in part.items()}
        filed["residual" if name == "model" else "ema_residual"] = weights.residual
        kept += [f"{name}.{key}" for key in weights.kept]
    return {name: _alone(part) for name, part in filed.items()}, kept


def _alone(value: Any) -> Any:
    """`value` with each tensor on the CPU, in a storage of its own: a file gets whole storages."""
    match value:
        case Tensor():
            value = value.detach().cpu()
            return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
        case dict():
            return {key: _alone(item) for key, item in value.items()}
        case list():
            return [_alone(item) for item in value]
    return value


def restored(content: Mapping[str, Any]) -> dict[str, Any]:
    """A loaded checkpoint with `model` (and `ema`) in float32, every bit, and without residuals.

    All tensors are copies: what was mapped from the file may be closed or deleted.
    """
    run = {key: _copied(part) for key, part in content.items() if key not in _WEIGHTS}
    for name, residual in (("model", "residual"), ("ema", "ema_residual")):
        if name in content:
            run[name] = decoded(content[name], content.get(residual))
    return run


_WEIGHTS = ("model", "residual", "ema", "ema_residual", "digest")


def decoded(weights: Mapping[str, Any], residual: Mapping[str, Any] | None) -> dict[str, Any]:
    """`weights` with float32 restored from `residual`; without one, copies as they are."""
    if residual is None:
        return {name: _copied(value) for name, value in weights.items()}
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    return {**weights, **half.decode(tensors, residual)}


def _copied(value: Any) -> Any:
    match value:
        case Tensor():
            return value.clone()
        case dict():
            return {key: _copied(item) for key, item in value.items()}
        case list():
            return [_copied(item) for item in value]
    return value
