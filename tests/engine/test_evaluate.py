"""An evaluation counts alike however its batches are divided among ranks."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from engine.evaluate import evaluate
from tasks.classification import Classification
from tests.ranks import run_ranks

IMAGES, CLASSES, BATCH = 101, 7, 16


def held_out() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(CLASSES, (IMAGES,), generator=generator)
    logits = torch.randn(IMAGES, CLASSES, generator=generator)
    logits[torch.arange(IMAGES), label] += 1
    return logits.round(decimals=1), label  # rounded: equal losses occur


def evaluated(rank: int, world_size: int) -> tuple[dict[str, float], dict[str, Any]]:
    logits, label = held_out()
    rows = [torch.arange(low, min(low + BATCH, IMAGES)) for low in range(0, IMAGES, BATCH)]
    batches = [
        {"image": logits[row], "label": label[row], "sample": row} for row in rows[rank::world_size]
    ]
    task = Classification([str(number) for number in range(CLASSES)])
    found = evaluate(torch.nn.Identity(), task, batches, nullcontext())
    return found.metrics, {name: value.tolist() for name, value in found.sums.items()}


def test_metrics_and_sums_are_equal_on_any_number_of_ranks() -> None:
    alone = run_ranks(1, evaluated, 1)[0]
    assert sum(map(sum, alone[1]["confusion"])) == IMAGES
    for world_size in (2, 3, 8):  # seven batches: the last rank of eight has none
        answers = run_ranks(world_size, evaluated, world_size)
        assert answers == [alone] * world_size


def test_the_worst_mistakes_are_those_of_the_whole_dataset() -> None:
    logits, label = held_out()
    rows = run_ranks(2, evaluated, 2)[0][1]["worst_mistakes"]
    loss = torch.nn.functional.cross_entropy(logits, label, reduction="none")
    wrong = (logits.argmax(dim=1) != label).nonzero()[:, 0].tolist()
    expected = sorted(wrong, key=lambda sample: (-float(loss[sample]), sample))[: len(rows)]
    found = [row[1] for row in rows]
    assert sorted(found) == sorted(expected)
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
