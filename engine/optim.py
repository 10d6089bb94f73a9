"""Optimizers by name, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.schema import Optim
from engine.layers import depths
from utils.errors import BadInput
from utils.names import is_function_path, load_function, pick

Groups = list[dict[str, Any]]
BuildOptimizer = Callable[[Groups, Optim], Optimizer]


def _sgd(groups: Groups, optim: Optim) -> Optimizer:
    return torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True
    )


def _adamw(groups: Groups, optim: Optim) -> Optimizer:
    beta1, beta2 = optim.betas
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(beta1, beta2), eps=optim.eps, fused=True)


def _rmsprop(groups: Groups, optim: Optim) -> Optimizer:
    return torch.optim.RMSprop(
        groups, lr=optim.lr, alpha=optim.alpha, eps=optim.eps, momentum=optim.momentum
    )


def _adafactor(groups: Groups, optim: Optim) -> Optimizer:
    return torch.optim.Adafactor(groups, lr=optim.lr)


OPTIMIZERS: dict[str, BuildOptimizer] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "adafactor": _adafactor,
}


def find_optimizer(name: str) -> BuildOptimizer:
    """The builder of `sgd`, or of `path/to/file.py:function`, called with (groups, options)."""
    if is_function_path(name):
        return load_function(name, "optimizer (optim.name)")
    return pick(OPTIMIZERS, name, "optimizer (optim.name)")


def require_names(optim: Optim) -> None:
    """BadInput unless there are an optimizer and a schedule of the configured names."""
    find_optimizer(optim.name)
    pick(SCHEDULES, optim.schedule, "schedule (optim.schedule)")


def build_optimizer(model: nn.Module, optim: Optim) -> Optimizer:
    """The optimizer of the parameters that train; none of the vectors (biases, norms) decays.

    The last layer has the full learning rate, each before it `optim.layer_decay` times that of the
    next. The groups carry parameter names, so that a checkpoint of another model is told by name.
    """
    named = list(model.named_parameters())
    layers = depths(named) if optim.layer_decay < 1 else [0] * len(named)
    settings: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}
    for (name, parameter), layer in zip(named, layers, strict=True):
        if parameter.requires_grad:
            settings.setdefault((layer, parameter.ndim > 1), []).append((name, parameter))
    # Matrices before vectors: the order in which the groups lie in a checkpoint.
    groups: Groups = [
        {
            "params": settings[layer, decays],
            "weight_decay": optim.weight_decay if decays else 0.0,
            "lr_scale": optim.layer_decay ** (max(layers) - layer),
        }
        for layer, decays in sorted(settings, key=lambda setting: (setting[0], not setting[1]))
    ]
    optimizer = find_optimizer(optim.name)(groups, optim)
    _begin_momentum(optimizer)
    return optimizer


def _begin_momentum(optimizer: Optimizer) -> None:
    """Zeros where torch's fused SGD would make its momentum in the first step.

    It makes that memory even when GradScaler skips the first step, never fills it, and then goes on
    from whatever was there (torch 2.14, `_fused_sgd`). 0.9 * 0 + g is the same first step.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


# A schedule: (share of the run after warm-up in [0, 1), epochs since the start, options) -> the
# learning rate as a share of its peak.
Schedule = Callable[[float, float, Optim], float]


def _constant(progress: float, epoch: float, optim: Optim) -> float:
    return 1.0


def _cosine(progress: float, epoch: float, optim: Optim) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float, epoch: float, optim: Optim) -> float:
    return 1.0 - progress


def _polynomial(progress: float, epoch: float, optim: Optim) -> float:
    return float((1.0 - progress) ** optim.power)


def _step(progress: float, epoch: float, optim: Optim) -> float:
    return float(optim.gamma ** sum(epoch >= milestone for milestone in optim.milestones))


SCHEDULES: Mapping[str, Schedule] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "polynomial": _polynomial,
    "step": _step,
}


def learning_rate(step: int, optim: Optim, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total_steps`.

    Linear warm-up over `optim.warmup_epochs`, then the schedule over what remains, from `optim.lr`
    down to `optim.min_lr`.
    """
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    share = SCHEDULES[optim.schedule](progress, step / steps_per_epoch, optim)
    return optim.min_lr + (optim.lr - optim.min_lr) * share


def rates(optim: Optim, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """The learning rate of a run as a function of the step."""
    return partial(
        learning_rate, optim=optim, steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate`, times its own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that the next step will use."""
    return [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]


def forget_gradients(optimizer: Optimizer) -> None:
    """Drop all gradients; `zero_grad` without its profiler entry, 20 us of a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def saved_state(
    optimizer: Optimizer, saved: Mapping[str, Any], file: object
) -> dict[int, dict[str, Any]] | None:
    """The optimizer state in the checkpoint `saved`; None without one, BadInput if another's."""
    if not saved:
        return None
    require_fit(optimizer, saved["optimizer"], file)
    state: dict[int, dict[str, Any]] = saved["optimizer"]["state"]
    return state


def require_fit(optimizer: Optimizer, saved: Mapping[str, Any], file: object) -> None:
    """BadInput unless a saved state is of the same parameters and quantities as `optimizer` has."""
    ours = [group["param_names"] for group in optimizer.state_dict()["param_groups"]]
    theirs = [group.get("param_names") for group in saved["param_groups"]]
    if ours != theirs:
        listed = {name for group in theirs if group for name in group}
        other = [name for group in ours for name in group if name not in listed]
        what = f"it has no state of {', '.join(other[:4])}" if other else "its groups are others"
        raise BadInput(f"{file}: its optimizer trained other parameters: {what}")
    needed, found = _quantities(optimizer), {key for s in saved["state"].values() for key in s}
    if found and needed != found:
        raise BadInput(
            f"{file}: another optimizer's state, with {sorted(found)} where this one keeps "
            f"{sorted(needed)}; optim.name must stay the checkpoint's"
        )


def _quantities(optimizer: Optimizer) -> set[str]:
    """The names of what the optimizer keeps for a parameter, learnt from a step of a twin.

    The twin holds a vector and a matrix: Adafactor keeps other quantities for each.
    """
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2, 2))]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    own = ("params", "param_names")
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k not in own}
    make: Callable[[Groups], Optimizer] = type(optimizer)
    twin = make([{"params": parameters, **settings}])
    twin.step()
    return {
        name for state in twin.state.values() for name, value in state.items() if value is not None
    }
