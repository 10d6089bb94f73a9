"""A network that has broken scores nothing, however many batches it is asked for.

./launch.sh test tests/tasks/test_broken.py
"""

import math

import torch
from torch import Tensor, nn

from engine.evaluate import _added
from tasks.classification import Classification


class Broken(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        """(B, 1) -> logits (B, 10) that are no numbers."""
        return torch.full((len(image), 10), math.nan)


def test_logits_that_are_not_numbers_are_never_right_and_their_loss_is_not_a_number() -> None:
    task = Classification([str(digit) for digit in range(10)])
    batch = {"image": torch.zeros(6, 1), "label": torch.zeros(6, dtype=torch.int64)}
    batch["sample"] = torch.arange(6)
    sums = task.measure(Broken(), batch)
    for _ in range(9):
        more = task.measure(Broken(), batch)
        sums = {name: _added(name, sums[name], more[name]) for name in sums}
    metrics = task.summarise(sums)
    assert metrics["accuracy"] == 0
    assert metrics["loss"] == math.inf
