"""Augmentation by whole batches: right by an image-by-image reference, and on any device alike."""

import numpy as np
import pytest
import torch

from configs.schema import Augment, Data
from data.datasets import build_dataset
from data.shift import shift_and_flip
from data.transforms import eval_transform, preprocess, train_transform

CPU = torch.device("cpu")


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(7, 1, 8, 8), (5, 3, 6, 9)])
def test_shift_and_flip_equal_an_image_by_image_crop(shape, flip):
    pad = 2
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    drawn = np.random.default_rng(0).random((shape[0], 3))
    result = shift_and_flip(images, pad, flip, drawn)
    assert result.is_contiguous()
    for image, moved, (down, right, mirrored) in zip(images, result, drawn, strict=True):
        wide = torch.nn.functional.pad(image, (pad, pad, pad, pad))
        if flip and mirrored < 0.5:
            wide = wide.flip(-1)
        top, left = int(down * 5), int(right * 5)
        expected = wide[:, top : top + shape[2], left : left + shape[3]]
        assert torch.equal(moved, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_shift_and_flip_are_the_same_on_a_gpu():
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    drawn = np.random.default_rng(0).random((64, 3))
    on_gpu = shift_and_flip(images.cuda(), 4, True, drawn)
    assert torch.equal(on_gpu.cpu(), shift_and_flip(images, 4, True, drawn))


def test_shifts_and_flips_are_drawn_evenly():
    pad, count = 2, 20_000
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 1] = 255  # off the middle column, so that a mirrored one differs
    drawn = np.random.default_rng(0).random((count, 3))
    moved = shift_and_flip(image.expand(count, -1, -1, -1).contiguous(), pad, True, drawn)
    share = (moved > 0).double().mean(dim=(0, 1))
    rows = share.sum(dim=1)
    assert torch.allclose(rows, rows.mean().expand(5), rtol=0.1)


def test_sample_is_augmented_alike_in_whatever_batch_it_comes():
    dataset = build_dataset(Data(name="digits"), "train")
    transform = train_transform(dataset, Augment(pad=2, flip=True), 5, CPU)
    samples = np.arange(100)
    whole = transform(dataset.__getitems__(samples), samples, 2)["image"]
    for part in (samples[::-1].copy(), samples[37:38], samples[3:90]):
        alone = transform(dataset.__getitems__(part), part, 2)["image"]
        assert torch.equal(alone, whole[part])


def test_training_images_are_normalised_to_mean_zero_and_deviation_one():
    dataset = build_dataset(Data(name="digits", image_size=16), "train")
    samples = np.arange(len(dataset))
    batch = eval_transform(dataset, CPU)(dataset.__getitems__(samples), samples, 0)
    assert batch["image"].dtype == torch.float32
    assert abs(float(batch["image"].mean())) < 1e-4
    assert abs(float(batch["image"].std(unbiased=False)) - 1) < 1e-4
    assert torch.equal(batch["label"], dataset.labels)


def test_preprocess_is_enough_to_prepare_an_image_elsewhere():
    dataset = build_dataset(Data(name="digits"), "val")
    told = preprocess(dataset)
    assert (told["image_size"], told["channels"]) == (8, 1)
    image = dataset.images[:1]
    mean, std = (torch.tensor(told[key]).view(-1, 1, 1) for key in ("mean", "std"))
    by_hand = (image.float() / 255 - mean) / std
    ours = eval_transform(dataset, CPU)({"image": image}, np.arange(1), 0)["image"]
    assert torch.allclose(by_hand, ours, atol=1e-6)
