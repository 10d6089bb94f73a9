"""Micro-batches add up to one gradient, step after step.

./launch.sh test tests/engine/test_gradient.py
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Config, Ddp
from ddp.wrap import wrap
from engine.gradient import averaged
from engine.step import step_settings
from tests.ranks import run_ranks


class Itself(nn.Module):
    """Its only parameter, whatever it is shown: the gradient that reaches it is the loss's own."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))

    def forward(self, _image: Tensor) -> Tensor:
        return self.value.reshape(())


def gradients(rank: int) -> list[float]:
    """Of three steps of three micro-batches each."""
    ddp_model = wrap(Itself(), Ddp(gradient_as_bucket_view=False))
    task: Any = SimpleNamespace(counts_vary=False, loss=lambda model, batch: model(batch))
    settings = step_settings(Config(), [32, 32, 32], 1, torch.device("cpu"))
    found = []
    for step in range(3):
        pieces: Any = iter([SimpleNamespace(index=n, batch=torch.zeros(1)) for n in range(3)])
        averaged(ddp_model, task, pieces, settings, step)
        found.append(float(ddp_model.module.value.grad))
        ddp_model.module.value.grad = None
    return found


def test_a_gradient_that_is_the_losss_own_does_not_grow_with_the_steps() -> None:
    assert run_ranks(1, gradients) == [[3 / 96] * 3]
