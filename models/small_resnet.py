"""A residual network of 0.3 million parameters for images of about 28 pixels."""

from torch import Tensor, nn
from torch.nn.functional import relu

WIDTHS = (32, 64, 128)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., "Deep residual learning", CVPR 2016)."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, width, H / stride, W / stride)."""
        y = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem, three blocks, global average, dropout, linear head."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, WIDTHS[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(),
        )
        in_widths = (WIDTHS[0], *WIDTHS[:-1])
        strides = (1, 2, 2)
        self.blocks = nn.Sequential(
            *(Block(*shape) for shape in zip(in_widths, WIDTHS, strides, strict=True))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) float -> logits (B, num_classes)."""
        features = self.blocks(self.stem(x)).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits


def small_resnet(num_classes: int, in_channels: int) -> nn.Module:
    """The network of the quickstart, 0.3 million parameters."""
    return SmallResNet(num_classes, in_channels)
