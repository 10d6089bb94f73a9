"""The training loss: label smoothing, and images mixed with their neighbours.

./launch.sh test tests/tasks/test_loss.py
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from configs.schema import Task
from tasks.task import build_task, require_task
from utils.errors import BadInput

CLASSES = ["a", "b", "c", "d"]


class Given(nn.Module):
    """A network whose logits are its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def batch() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 4, generator=draw) * 3
    labels = torch.randint(4, (2, 8), generator=draw)
    share = torch.rand(8, generator=draw)
    return {
        "image": logits,
        "label": labels[0],
        "partner_label": labels[1],
        "own_share": share,
        "sample": torch.arange(8),
    }


def soft(batch: dict[str, Tensor], smoothing: float, mixed: bool) -> Tensor:
    """The same loss by its definition, against targets that are distributions."""
    target = one_hot(batch["label"], 4).double()
    if mixed:
        share = batch["own_share"][:, None].double()
        target = share * target + (1 - share) * one_hot(batch["partner_label"], 4)
    target = (1 - smoothing) * target + smoothing / 4
    return -(target * batch["image"].double().log_softmax(dim=1)).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_the_cross_entropy_with_smoothed_and_mixed_targets(
    batch: dict[str, Tensor], smoothing: float, mixed: bool
) -> None:
    task = build_task(Task(label_smoothing=smoothing), CLASSES)
    given = batch if mixed else {k: batch[k] for k in ("image", "label", "sample")}
    loss = task.loss(Given(), given)
    assert float(loss) == pytest.approx(float(soft(batch, smoothing, mixed)), rel=1e-5)


def test_evaluation_never_smooths(batch: dict[str, Tensor]) -> None:
    task = build_task(Task(label_smoothing=0.3), CLASSES)
    plain = cross_entropy(batch["image"], batch["label"])
    measured = task.summarise(task.measure(Given(), batch))
    assert measured["loss"] == pytest.approx(float(plain), rel=1e-5)


def test_an_unknown_task_is_told_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="did you mean 'classification'"):
        require_task("clasification")
