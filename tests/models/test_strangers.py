"""Checkpoints of torchvision's reference and of timm's script load as weights.

They are made here by the same structure, with live optimizers and schedulers, as those scripts
save them: references/classification/train.py `main`, timm/utils/checkpoint_saver.py `_save`.

./launch.sh test tests/models/test_strangers.py
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import AveragedModel

from models.build import build_model, find_builder
from models.pretrained import load_pretrained

NAME = "torchvision:shufflenet_v2_x0_5"
CLASSES = [f"class {number}" for number in range(1000)]


def network(classes: int = 1000, seed: int = 1, name: str = NAME) -> nn.Module:
    return build_model(find_builder(name), classes, 3, seed=seed, initialise=True)


class Wrapped(nn.Module):
    """What DDP makes of the names of a network."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """One step of SGD with momentum, as a live state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return optimizer


SCHEDULES = {
    "steplr": lambda o: StepLR(o, step_size=30, gamma=0.1),
    "cosineannealinglr": lambda o: CosineAnnealingLR(o, T_max=595, eta_min=0.0),
    "exponentiallr": lambda o: ExponentialLR(o, gamma=0.97),
    "warm-up, then cosine": lambda o: SequentialLR(
        o, [LinearLR(o, start_factor=0.01, total_iters=5), CosineAnnealingLR(o, 595)], [5]
    ),
    "multistep": lambda o: MultiStepLR(o, [30, 60]),
}


def save_as_torchvision(file: Path, schedule: str) -> dict[str, Tensor]:
    model = network()
    optimizer = trained(model)
    averaged = AveragedModel(model, device="cpu", use_buffers=True)
    scheduler = SCHEDULES[schedule](optimizer)
    content: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 7,
        "args": argparse.Namespace(
            data_path="/datasets/imagenet", model="shufflenet_v2_x0_5", lr=0.5, epochs=600,
            norm_weight_decay=0.0, bias_weight_decay=None, clip_grad_norm=None, distributed=True,
            device="cuda", gpu=0, dist_backend="nccl", auto_augment="ta_wide", ra_magnitude=9,
        ),
        "model_ema": averaged.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }  # fmt: skip
    torch.save(content, file)
    return model.state_dict()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_checkpoint_of_torchvisions_reference_loads_whole(tmp_path: Path, schedule: str) -> None:
    saved = save_as_torchvision(tmp_path / "checkpoint.pth", schedule)
    model = network(seed=9)
    report = load_pretrained(model, tmp_path / "checkpoint.pth", CLASSES)
    assert report.reinitialised == {}
    assert report.unused == []
    assert report.loaded_parameters == report.model_parameters
    assert all(torch.equal(t, saved[name]) for name, t in model.state_dict().items())


def test_its_head_of_a_thousand_stays_out_of_a_network_of_three(tmp_path: Path) -> None:
    save_as_torchvision(tmp_path / "checkpoint.pth", "steplr")
    report = load_pretrained(network(3, 9), tmp_path / "checkpoint.pth", ["a", "b", "c"])
    assert report.reinitialised == {
        "fc.weight": "shape (1000, 1024) in the file, (3, 1024) here",
        "fc.bias": "shape (1000,) in the file, (3,) here",
    }
    assert "stays random: fc.weight (shape (1000, 1024) in the file" in report.text()


def save_as_timm(file: Path) -> dict[str, Tensor]:
    model = network(name="timm:mobilenetv3_small_050")
    optimizer = trained(model)
    average = copy.deepcopy(model)
    for parameter in average.parameters():
        parameter.data.mul_(0.5)
    state: dict[str, Any] = {
        "epoch": 12,
        "arch": "mobilenetv3_small_050",
        "state_dict": Wrapped(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": argparse.Namespace(
            model="mobilenetv3_small_050", lr=0.2, opt_betas=None, mean=(0.5, 0.5, 0.5),
            decay_milestones=[90, 180, 270], mixup=0.0, amp=True, world_size=8, device="cuda:0",
        ),
        "amp_scaler": torch.amp.GradScaler("cpu").state_dict(),
        "state_dict_ema": average.state_dict(),
        "metric": 71.25,
    }  # fmt: skip
    torch.save(state, file)
    return model.state_dict()


def test_a_checkpoint_of_timms_script_loads_whole(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    saved = save_as_timm(tmp_path / "last.pth.tar")
    model = network(seed=9, name="timm:mobilenetv3_small_050")
    report = load_pretrained(model, tmp_path / "last.pth.tar", CLASSES)
    assert report.reinitialised == {}
    assert report.unused == []
    assert all(torch.equal(t, saved[name]) for name, t in model.state_dict().items())
