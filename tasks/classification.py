"""One label an image: cross-entropy, and how many were right."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks.scores import class_metrics, class_sums
from utils.fixed import from_fixed, to_fixed


class Classification:
    """Image classification; batches hold `image` (B, C, H, W) float and `label` (B,) int64."""

    metrics: Mapping[str, bool] = {
        "accuracy": True,
        "loss": False,
        "top5": True,
        "macro_f1": True,
        "calibration_error": False,
    }
    counts_vary = False

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
        """int64 sums: `images` (), `loss` () in units of 2**-32, and those of `class_sums`."""
        logits = model(batch["image"]).float()
        label = batch["label"]
        return {
            "images": torch.tensor(len(label), device=label.device),
            "loss": to_fixed(cross_entropy(logits, label, reduction="sum")),
            **class_sums(logits, batch),
        }

    def summarise(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Mean cross-entropy in nats, and the shares in [0, 1] of `class_metrics`."""
        scores = class_metrics(sums)
        loss = from_fixed(int(sums["loss"])) / int(sums["images"])
        return {"accuracy": scores.pop("accuracy"), "loss": loss, **scores}
