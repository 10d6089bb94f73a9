"""What a classifier is judged by, from integers that may be added over batches and ranks.

The definitions are torchmetrics', and the tests hold them to it; the sums are here because
importing torchmetrics takes seconds on every rank, and its states are floats that are not exact.
"""

import torch
from torch import Tensor

from utils.fixed import to_fixed

Sums = dict[str, Tensor]

BINS = 15  # of confidence, equally wide; a confidence of exactly 1 has a bin of its own
LARGEST_MATRIX = 1000  # classes of which a confusion matrix is kept
WORST = 32
_WORST_LOSS = 2.0**28  # stands for one that is not finite


def class_sums(logits: Tensor, batch: dict[str, Tensor]) -> Sums:
    """Integer sums of logits (B, K) float and the batch's `label` and `sample` (B,).

    `right` (), `top5` (); `per_class` (K, 3): images of a class, predictions of it, both;
    `confusion` (K, K): truth by prediction; `calibration` (16, 3): images in a bin of confidence,
    right ones, confidence in units of 2**-32; `worst_mistakes`, see `mistakes`.
    """
    label, classes = batch["label"], logits.shape[1]
    log_chance = logits.log_softmax(dim=1)
    predicted = logits.argmax(dim=1)
    confidence = log_chance.gather(1, predicted[:, None])[:, 0].exp().nan_to_num(0.0)
    right = (predicted == label) & (confidence > 0)  # NaN logits predict nothing
    nearest = logits.topk(min(5, classes), dim=1).indices
    counts = (label, predicted, label[right])
    sums = {
        "right": right.sum(),
        "top5": (nearest == label[:, None]).sum(),
        "per_class": torch.stack([c.bincount(minlength=classes) for c in counts], dim=1),
        "calibration": _calibration(confidence, right),
        "worst_mistakes": mistakes(log_chance, batch, predicted, confidence),
    }
    if classes <= LARGEST_MATRIX:
        cells = (label * classes + predicted).bincount(minlength=classes**2)
        sums["confusion"] = cells.reshape(classes, classes)
    return sums


def _calibration(confidence: Tensor, right: Tensor) -> Tensor:
    edges = torch.linspace(0, 1, BINS + 1, device=confidence.device)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, BINS)
    rows = torch.stack([torch.ones_like(right), right, to_fixed(confidence)], dim=1)
    return rows.new_zeros(BINS + 1, 3).index_add_(0, bins, rows)


def mistakes(
    log_chance: Tensor, batch: dict[str, Tensor], predicted: Tensor, confidence: Tensor
) -> Tensor:
    """The wrong predictions of highest loss, int64 (WORST, 5): loss, sample, truth, prediction,
    confidence, with loss and confidence in units of 2**-32; all -1 where there are fewer."""
    label = batch["label"]
    loss = -log_chance.gather(1, label[:, None])[:, 0].nan_to_num(-_WORST_LOSS, neginf=-_WORST_LOSS)
    columns = (to_fixed(loss), batch["sample"], label, predicted, to_fixed(confidence))
    rows = torch.stack([column.to(label.device) for column in columns], dim=1)
    # A fixed shape without waiting for the device: right predictions become empty rows.
    rows = torch.where((predicted == label)[:, None], -1, rows)
    rows = rows[rows[:, 0].argsort(descending=True, stable=True)][:WORST]
    return torch.nn.functional.pad(rows, (0, 0, 0, WORST - len(rows)), value=-1)


def class_metrics(sums: Sums) -> dict[str, float]:
    """accuracy, top5, macro_f1 and calibration_error, each in [0, 1]."""
    images, predictions, both = sums["per_class"].double().unbind(1)
    seen = images + predictions > 0  # as torchmetrics: a class that never occurs has no score
    f1 = 2 * both[seen] / (images + predictions)[seen]
    total = int(images.sum())
    inside, right, confidence = sums["calibration"].double().unbind(1)
    gap = (right - confidence / 2**32).abs()[inside > 0]
    return {
        "accuracy": int(sums["right"]) / total,
        "top5": int(sums["top5"]) / total,
        "macro_f1": float(f1.mean()),
        "calibration_error": float(gap.sum()) / total,
    }
