"""Unequal parts: pixels to ignore on some ranks more than on others weigh as in one process.

./launch.sh test tests/engine/test_uneven.py
"""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from configs.load import from_plain
from configs.schema import Ddp
from data.loader import micro_batches
from ddp.wrap import wrap
from engine.step import step_settings
from tests.ranks import run_ranks

IGNORED = 255
GLOBAL_BATCH = 12


class Pixels:
    """One label a pixel, many of them to be ignored."""

    counts_vary = True

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["label"] != IGNORED).sum()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return cross_entropy(
            model(batch["image"]), batch["label"], ignore_index=IGNORED, reduction="sum"
        )


class SaysItIsEven(Pixels):
    counts_vary = False


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


def global_batch(valid: list[float]) -> dict[str, Tensor]:
    """12 images of 8 x 8 pixels; `valid` is the share of labelled pixels of each."""
    drawn = torch.Generator().manual_seed(1)
    label = torch.randint(0, 4, (GLOBAL_BATCH, 8, 8), generator=drawn)
    kept = torch.rand(GLOBAL_BATCH, 8, 8, generator=drawn) < torch.tensor(valid)[:, None, None]
    return {
        "image": torch.randn(GLOBAL_BATCH, 1, 8, 8, generator=drawn),
        "label": torch.where(kept, label, IGNORED),
    }


def pieces(batch: dict[str, Tensor], rank: int, sizes: list[int]) -> Iterator[SimpleNamespace]:
    low = rank * sum(sizes)
    for number, size in enumerate(sizes, start=rank * len(sizes)):
        part = {name: value[low : low + size] for name, value in batch.items()}
        yield SimpleNamespace(index=number, batch=part)
        low += size


def gradient(
    rank: int, world_size: int, task: Pixels, valid: list[float], cap: int, exact: bool
) -> tuple[np.ndarray, float, int]:
    """The whole gradient, this rank's summed loss and count."""
    overrides = (f"train.global_batch={GLOBAL_BATCH}", f"ddp.exact={str(exact).lower()}")
    config = from_plain({}, overrides, "test")
    sizes = micro_batches(GLOBAL_BATCH // world_size, cap)
    settings = step_settings(config, sizes, world_size, torch.device("cpu"))
    model = wrap(network(), Ddp())
    losses, count = settings.accumulate(
        model, task, pieces(global_batch(valid), rank, sizes), settings, 0
    )
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return grads.numpy(), float(sum(losses)), int(count)


def of_one_process(rank: int, valid: list[float]) -> np.ndarray:
    """The gradient of the mean over the labelled pixels of the whole global batch, in float64."""
    model, batch = network().double(), global_batch(valid)
    logits = model(batch["image"].double())
    cross_entropy(logits, batch["label"], ignore_index=IGNORED).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy()


def distance(ours: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(ours - right) / np.linalg.norm(right))


UNEVEN = [0.02, 0.9, 0.05, 0.1, 0.0, 0.0, 0.3, 1.0, 0.6, 0.01, 0.9, 0.5]
A_RANK_WITHOUT_PIXELS = [0.0] * 6 + [0.8] * 6


@pytest.mark.parametrize("valid", [UNEVEN, A_RANK_WITHOUT_PIXELS])
@pytest.mark.parametrize(
    ("world_size", "cap", "exact"),
    [(1, 12, False), (2, 12, False), (3, 12, False), (3, 3, False), (1, 3, True), (2, 3, True)],
)
def test_uneven_parts_have_the_gradient_of_one_process_on_the_whole_batch(
    world_size: int, cap: int, exact: bool, valid: list[float]
) -> None:
    (right,) = run_ranks(1, of_one_process, valid)
    answers = run_ranks(world_size, gradient, world_size, Pixels(), valid, cap, exact)
    for ours, _, _ in answers:
        assert distance(ours, right) <= 1e-6
    labelled = int((global_batch(valid)["label"] != IGNORED).sum())
    assert sum(count for _, _, count in answers) == labelled


def test_dividing_by_the_images_would_be_another_gradient() -> None:
    (right,) = run_ranks(1, of_one_process, UNEVEN)
    ((ours, _, _), _) = run_ranks(2, gradient, 2, SaysItIsEven(), UNEVEN, 12, False)
    assert distance(ours, right) > 0.1


def test_a_step_without_a_single_labelled_pixel_has_no_gradient() -> None:
    for ours, loss, count in run_ranks(2, gradient, 2, Pixels(), [0.0] * 12, 12, False):
        assert (np.abs(ours).max(), loss, count) == (0.0, 0, 0)


def collectives_of_a_step(rank: int, task: Pixels) -> int:
    import engine.gradient

    calls = []
    engine.gradient.sum_over_ranks = lambda values: calls.append(values) or values
    gradient(rank, 2, task, UNEVEN, 12, False)
    return len(calls)


@pytest.mark.parametrize(("task", "collectives"), [(Pixels(), 1), (SaysItIsEven(), 0)])
def test_only_a_task_whose_counts_vary_pays_a_collective(task: Pixels, collectives: int) -> None:
    assert run_ranks(2, collectives_of_a_step, task) == [collectives] * 2
