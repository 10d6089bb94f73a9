"""Networks that only tests use."""

import time

from torch import Tensor, nn
from torch.nn.functional import relu


class OutOfOrder(nn.Module):
    """Layers registered in another order than they run in, as DDP's buckets do not expect it."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        x = relu(self.norm1(self.conv1(x)))
        x = relu(self.norm3(self.conv3(relu(self.conv2(x)))))
        logits: Tensor = self.head(self.dropout(x.mean(dim=(2, 3))))
        return logits


def out_of_order(num_classes: int, in_channels: int) -> nn.Module:
    """A small network whose registration order is not its execution order."""
    return OutOfOrder(num_classes, in_channels)


def alike_on_any_ranks(num_classes: int, in_channels: int) -> nn.Module:
    """A small network without BatchNorm, which takes the statistics of one rank's samples."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, num_classes),
    )


class Slow(nn.Module):
    """A linear classifier that takes its time."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels * 64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 8, 8) -> logits (B, K)."""
        time.sleep(0.6)
        logits: Tensor = self.head(x.flatten(1))
        return logits


def slow(num_classes: int, in_channels: int) -> nn.Module:
    """A network of 0.6 s a step."""
    return Slow(num_classes, in_channels)
