"""One label an image: cross-entropy, and how many were right."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from utils.fixed import from_fixed, to_fixed


class Classification:
    """Image classification; batches hold `image` (B, C, H, W) float and `label` (B,) int64."""

    metrics: Mapping[str, bool] = {"accuracy": True, "loss": False}

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)

    def collate(self, samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        """Stack (image (C, H, W), label) pairs into a batch."""
        images, labels = zip(*samples, strict=True)
        return {"image": torch.stack(images), "label": torch.tensor(labels)}

    def count(self, batch: dict[str, Tensor]) -> int:
        """The number of images."""
        return len(batch["label"])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy () summed over the images."""
        logits = model(batch["image"])
        return cross_entropy(logits.float(), batch["label"], reduction="sum")

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """int64 sums (): images, right answers, and cross-entropy in units of 2**-32."""
        logits = model(batch["image"]).float()
        label = batch["label"]
        return {
            "images": torch.tensor(len(label), device=label.device),
            "right": (logits.argmax(dim=1) == label).sum(),
            "loss": to_fixed(cross_entropy(logits, label, reduction="sum")),
        }

    def summarise(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """accuracy in [0, 1] and mean cross-entropy in nats."""
        images = int(sums["images"])
        return {
            "accuracy": int(sums["right"]) / images,
            "loss": from_fixed(int(sums["loss"])) / images,
        }
