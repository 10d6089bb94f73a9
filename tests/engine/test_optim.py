"""Optimizers and learning rates: every name, its state, its factor in every layer.

./launch.sh test tests/engine/test_optim.py
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from configs.load import from_plain
from configs.schema import Optim
from engine.layers import depths
from engine.optim import (
    OPTIMIZERS,
    SCHEDULES,
    build_optimizer,
    learning_rate,
    require_fit,
    require_names,
    set_learning_rate,
)
from models.build import build_model, find_builder
from tests.ranks import run_ranks
from utils.errors import BadInput


def options(**given: Any) -> Optim:
    return from_plain({"optim": given}, [], "the test").optim


def small_resnet() -> nn.Module:
    return build_model(find_builder("small_resnet"), 10, 1, seed=0, initialise=True)


def rates(steps: int = 100, **given: Any) -> list[float]:
    optim = options(lr=0.2, **given)
    return [learning_rate(step, optim, 10, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_linearly_and_never_rises_after_it(schedule: str) -> None:
    more = {"milestones": [5, 8]} if schedule == "step" else {}
    found = rates(schedule=schedule, warmup_epochs=2.0, **more)
    assert found[:20] == pytest.approx([0.2 * (step + 1) / 20 for step in range(20)])
    assert found[20] == pytest.approx(0.2)
    assert all(later <= earlier for earlier, later in pairwise(found[20:]))


def test_schedules_have_their_values_at_known_places() -> None:
    assert rates(schedule="linear", warmup_epochs=0.0)[50] == pytest.approx(0.1)
    assert rates(schedule="cosine", warmup_epochs=0.0)[50] == pytest.approx(0.1)
    assert rates(schedule="polynomial", power=2, warmup_epochs=0.0)[50] == pytest.approx(0.05)
    assert rates(schedule="constant", warmup_epochs=0.0)[99] == 0.2
    steps = rates(schedule="step", milestones=[3, 6], gamma=0.1, warmup_epochs=0.0)
    assert [steps[29], steps[30], steps[59], steps[60]] == pytest.approx([0.2, 0.02, 0.02, 0.002])
    low = rates(schedule="cosine", min_lr=0.05, warmup_epochs=0.0)
    assert low[-1] == pytest.approx(0.05, abs=1e-3)
    assert low[50] == pytest.approx(0.125)


def test_the_learning_rate_falls_from_the_head_to_the_stem_and_vectors_never_decay() -> None:
    model = small_resnet()
    optimizer = build_optimizer(model, options(layer_decay=0.5, weight_decay=0.1))
    set_learning_rate(optimizer, 1.0)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert found["head.weight"] == (1.0, 0.1)
    assert found["head.bias"] == (1.0, 0.0)
    assert found["blocks.2.conv1.weight"] == (0.5, 0.1)
    assert found["blocks.0.norm2.bias"] == (0.125, 0.0)
    assert found["stem.0.weight"] == (0.0625, 0.1)
    assert found["stem.1.weight"] == (0.0625, 0.0)
    assert set(found) == {name for name, _ in model.named_parameters()}


def test_layers_are_blocks_in_the_networks_people_fine_tune() -> None:
    expected = {"resnet50": 18, "vit_b_16": 16, "convnext_tiny": 9, "efficientnet_b0": 10}
    for name, count in expected.items():
        with torch.device("meta"):
            named = list(find_builder(f"torchvision:{name}")(10, 3).named_parameters())
        layers = depths(named)
        assert (layers[0], max(layers) + 1) == (0, count)
        assert all(0 <= b - a <= 1 for a, b in pairwise(layers))


def stepped(rank: int, name: str) -> tuple[bool, str]:
    model = small_resnet()
    optim = options(name=name, lr=0.01)
    optimizer = build_optimizer(model, optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = optimizer.state_dict()
    require_fit(build_optimizer(model, optim), saved, "x.pt")
    other = build_optimizer(model, options(name="adamw" if name != "adamw" else "sgd"))
    with pytest.raises(BadInput) as caught:
        require_fit(other, saved, "x.pt")
    moved = all(not torch.equal(a, b) for a, b in zip(
        model.parameters(), small_resnet().parameters(), strict=True))  # fmt: skip
    return moved, str(caught.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_knows_its_own_state_and_refuses_anothers(name: str) -> None:
    ((moved, refusal),) = run_ranks(1, stepped, name)
    assert moved
    assert "optim.name must stay the checkpoint's" in refusal


def first_step_skipped(rank: int) -> float:
    junk = [torch.full((4096,), 7.0) for _ in range(64)]
    del junk  # so that uninitialised memory is not zero by chance
    model = nn.Linear(64, 64, bias=False)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, options(lr=0.5, weight_decay=0.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for value in (math.inf, 1.0):
        scaler.scale(torch.ones(()))
        model.weight.grad = torch.full((64, 64), 2.0 * value)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return float((before - model.weight.detach()).max())


def test_momentum_starts_from_zero_even_when_the_first_step_is_skipped() -> None:
    # The scale fell from 4 to 2, so the second step's gradient is 1 and the step is 0.5 * 1.
    assert run_ranks(1, first_step_skipped) == [pytest.approx(0.5)]


def test_unknown_names_are_told_with_the_near_ones() -> None:
    with pytest.raises(BadInput, match="did you mean 'adamw'"):
        require_names(options(name="adamv"))
    with pytest.raises(BadInput, match="did you mean 'cosine'"):
        require_names(options(schedule="cosin"))
    with pytest.raises(BadInput, match="there is no file"):
        require_names(options(name="nowhere.py:lion"))
