"""Optimizers by name, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.schema import Optim
from utils.errors import BadInput
from utils.names import pick

Groups = list[dict[str, Any]]


def _sgd(groups: Groups, optim: Optim) -> Optimizer:
    return torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True
    )


def _adamw(groups: Groups, optim: Optim) -> Optimizer:
    beta1, beta2 = optim.betas
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(beta1, beta2), eps=optim.eps, fused=True)


OPTIMIZERS: dict[str, Callable[[Groups, Optim], Optimizer]] = {"sgd": _sgd, "adamw": _adamw}


def require_names(optim: Optim) -> None:
    """BadInput unless there are an optimizer and a schedule of the configured names."""
    pick(OPTIMIZERS, optim.name, "optimizer (optim.name)")
    pick(SCHEDULES, optim.schedule, "schedule (optim.schedule)")


def build_optimizer(model: nn.Module, optim: Optim) -> Optimizer:
    """The optimizer of the parameters that train; none of the vectors (biases, norms) decays.

    The groups carry parameter names, so that a checkpoint of another model is told by name.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [pair for pair in trained if pair[1].ndim > 1]
    kept = [pair for pair in trained if pair[1].ndim <= 1]
    groups: Groups = [
        {"params": pairs, "weight_decay": decay}
        for pairs, decay in ((decayed, optim.weight_decay), (kept, 0.0))
        if pairs
    ]
    return OPTIMIZERS[optim.name](groups, optim)


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: Mapping[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine}


def learning_rate(step: int, optim: Optim, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total_steps`.

    Linear warm-up over `optim.warmup_epochs`, then the schedule over what remains.
    """
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return optim.lr * SCHEDULES[optim.schedule](progress)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate`, times its own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that the next step will use."""
    return [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]


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
    """The names of what the optimizer keeps for a parameter, learnt from a step of a twin."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    own = ("params", "param_names")
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k not in own}
    make: Callable[[Groups], Optimizer] = type(optimizer)
    twin = make([{"params": [parameter], **settings}])
    twin.step()
    return {name for name, value in twin.state[parameter].items() if value is not None}
