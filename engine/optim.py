"""Optimizers by name, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.schema import Optim
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
    return pick(OPTIMIZERS, optim.name, "optimizer")(groups, optim)


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
    return optim.lr * pick(SCHEDULES, optim.schedule, "schedule")(progress)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate`, times its own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that the next step will use."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
