"""Networks and optimizers that the tests of options use."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Optim


class Loud(nn.Module):
    """A linear classifier whose gradient overflows in fp16 until the loss scale has fallen."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels * 64, num_classes)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 8, 8) -> logits (B, K)."""
        logits: Tensor = self.head(self.drop(x.flatten(1))) * 16.0
        return logits


def loud(num_classes: int, in_channels: int) -> nn.Module:
    return Loud(num_classes, in_channels)


class Tiny(nn.Module):
    """Convolution, norm, dropout, head: quick to compile."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        logits: Tensor = self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))))
        return logits


def tiny(num_classes: int, in_channels: int) -> nn.Module:
    return Tiny(num_classes, in_channels)


def nadam(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    return torch.optim.NAdam(groups, lr=optim.lr, betas=optim.betas)


class Broken(Loud):
    """Returns what is not a number."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 8, 8) -> NaN (B, K)."""
        return super().forward(x) * float("nan")


def broken(num_classes: int, in_channels: int) -> nn.Module:
    return Broken(num_classes, in_channels)


class BrokenOnRank1(Loud):
    """Sane but for rank 1's fourth training step, after the two passes that warm up."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 8, 8) -> logits (B, K), or NaN."""
        self.passes += self.training
        breaks = os.environ["RANK"] == "1" and self.passes == 2 + 4
        return super().forward(x) * (float("nan") if breaks else 1.0)


def broken_on_rank_1(num_classes: int, in_channels: int) -> nn.Module:
    return BrokenOnRank1(num_classes, in_channels)
