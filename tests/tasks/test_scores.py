"""The metrics of a classifier beside torchmetrics' and scikit-learn's on the same predictions."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from tasks.classification import Classification
from tasks.scores import LARGEST_MATRIX, WORST, class_metrics, class_sums
from utils.fixed import from_fixed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # at import, of the packages it imports in turn
    from torchmetrics.functional import classification as reference


def predictions(classes: int, images: int = 403, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (N, K) that are right about half of the time, and their batch."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator) * 2
    logits[torch.arange(images), label] += 3
    return logits, {"label": label, "sample": torch.arange(images) + 1000}


@pytest.mark.parametrize("classes", [2, 3, 10, 137])
def test_metrics_are_those_of_torchmetrics(classes: int) -> None:
    logits, batch = predictions(classes)
    label, chance = batch["label"], logits.softmax(dim=1)
    options = {"num_classes": classes, "average": "macro"}
    expected = {
        "accuracy": reference.multiclass_accuracy(logits, label, classes, average="micro"),
        "top5": reference.multiclass_accuracy(
            logits, label, classes, average="micro", top_k=min(5, classes)
        ),
        "macro_f1": reference.multiclass_f1_score(logits, label, **options),
        "calibration_error": reference.multiclass_calibration_error(chance, label, classes),
    }
    found = class_metrics(class_sums(logits, batch))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6), name


def test_per_class_accuracy_and_confusion_are_those_of_torchmetrics_and_scikit_learn() -> None:
    logits, batch = predictions(10)
    label, predicted = batch["label"], logits.argmax(dim=1)
    sums = class_sums(logits, batch)
    images, _, both = sums["per_class"].unbind(1)
    each = reference.multiclass_accuracy(logits, label, 10, average="none")
    assert torch.allclose(both / images, each)
    assert torch.equal(
        sums["confusion"], reference.multiclass_confusion_matrix(predicted, label, 10)
    )
    table = sklearn_metrics.confusion_matrix(label, predicted)
    assert np.array_equal(sums["confusion"], table)
    f1 = sklearn_metrics.f1_score(label, predicted, average="macro")
    assert class_metrics(sums)["macro_f1"] == pytest.approx(f1, abs=1e-12)


def test_a_class_that_never_occurs_has_no_part_in_macro_f1() -> None:
    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0]])
    batch = {"label": torch.tensor([0, 1, 1]), "sample": torch.arange(3)}
    assert class_metrics(class_sums(logits, batch))["macro_f1"] == pytest.approx(2 / 3)


def test_full_confidence_is_calibrated_when_it_is_right() -> None:
    logits = torch.tensor([[200.0, 0], [0, 200]])
    batch = {"label": torch.tensor([0, 1]), "sample": torch.arange(2)}
    assert class_metrics(class_sums(logits, batch))["calibration_error"] == 0


@pytest.mark.parametrize("classes", [10, LARGEST_MATRIX + 1])
def test_sums_of_parts_are_the_sums_of_the_whole(classes: int) -> None:
    logits, batch = predictions(classes, images=101)
    whole = class_sums(logits, batch)
    assert ("confusion" in whole) == (classes <= LARGEST_MATRIX)
    parts = [
        class_sums(logits[low:high], {name: value[low:high] for name, value in batch.items()})
        for low, high in pairwise([0, 1, 40, 101])
    ]
    for name, value in whole.items():
        assert value.dtype == torch.int64
        if not name.startswith("worst_"):
            assert torch.equal(value, sum(part[name] for part in parts)), name


def test_worst_mistakes_are_the_wrong_ones_of_highest_loss() -> None:
    logits, batch = predictions(10)
    rows = class_sums(logits, batch)["worst_mistakes"]
    loss = torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none")
    wrong = logits.argmax(dim=1) != batch["label"]
    worst = torch.where(wrong, loss, -1).argsort(descending=True)[:WORST]
    assert rows[:, 1].tolist() == batch["sample"][worst].tolist()
    assert rows[:, 2].tolist() == batch["label"][worst].tolist()
    assert rows[:, 3].tolist() == logits[worst].argmax(dim=1).tolist()
    assert from_fixed(int(rows[0, 0])) == pytest.approx(float(loss[worst[0]]), abs=1e-5)
    confidence = logits.softmax(dim=1).amax(dim=1)[worst]
    assert [from_fixed(c) for c in rows[:, 4].tolist()] == pytest.approx(confidence.tolist())


def test_rows_without_a_mistake_are_empty() -> None:
    logits, batch = predictions(10, images=5)
    batch["label"] = logits.argmax(dim=1)
    assert (class_sums(logits, batch)["worst_mistakes"] == -1).all()


def test_every_metric_says_which_way_is_better() -> None:
    logits, batch = predictions(10)
    task = Classification([str(number) for number in range(10)])
    found = task.summarise(task.measure(torch.nn.Identity(), {"image": logits, **batch}))
    assert set(found) == set(task.metrics)
    assert task.metrics["accuracy"]
    assert not task.metrics["calibration_error"]
