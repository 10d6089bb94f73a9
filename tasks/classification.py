"""One label an image: cross-entropy, and how many were right."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from configs.schema import Task as Options
from tasks.scores import class_metrics, class_sums
from utils.fixed import from_fixed, to_fixed, without_broken


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

    def __init__(self, classes: Sequence[str], label_smoothing: float = 0.0) -> None:
        self.classes = list(classes)
        self._smoothing = label_smoothing

    def collate(self, samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        """Stack (image (C, H, W), label) pairs into a batch."""
        images, labels = zip(*samples, strict=True)
        return {"image": torch.stack(images), "label": torch.tensor(labels)}

    def count(self, batch: dict[str, Tensor]) -> int:
        """The number of images."""
        return len(batch["label"])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy () summed over the images, labels smoothed.

        Where images were mixed, that of `partner_label` (B,) counts for what is not `own_share`.
        """
        logits = model(batch["image"]).float()
        losses = partial(cross_entropy, logits, label_smoothing=self._smoothing)
        if "partner_label" not in batch:
            return losses(batch["label"], reduction="sum")
        own = losses(batch["label"], reduction="none") * batch["own_share"]
        others = losses(batch["partner_label"], reduction="none") * (1 - batch["own_share"])
        return (own + others).sum()

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """int64 sums: `images` (), `loss` () in units of 2**-32, `broken` () batches whose loss is
        not finite, and those of `class_sums`."""
        logits = model(batch["image"]).float()
        label = batch["label"]
        loss, broken = without_broken(to_fixed(cross_entropy(logits, label, reduction="sum")))
        return {
            "images": torch.tensor(len(label), device=label.device),
            "loss": loss,
            "broken": broken,
            **class_sums(logits, batch),
        }

    def summarise(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Mean cross-entropy in nats, and the shares in [0, 1] of `class_metrics`."""
        scores = class_metrics(sums)
        loss = from_fixed(int(sums["loss"])) / int(sums["images"]) if not sums["broken"] else inf
        return {"accuracy": scores.pop("accuracy"), "loss": loss, **scores}


def classification(options: Options, classes: Sequence[str]) -> Classification:
    """The task with its options."""
    return Classification(classes, options.label_smoothing)
